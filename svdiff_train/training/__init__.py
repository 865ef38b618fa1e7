"""What happens while a run trains: set-up, the loop, each step, its losses, checkpoints and signals."""
