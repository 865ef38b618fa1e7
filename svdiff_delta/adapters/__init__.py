"""Files of other programs told from their headers alone, and adapters spelled anew: nothing here computes."""
