"""Publishing on the Hub: the card, what goes with it, what must not, and the commit."""
