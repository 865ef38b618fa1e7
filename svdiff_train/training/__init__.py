"""Run a training: set-up, the loop, each step, its losses, checkpoints and signals."""
