"""The demo: two subjects learned on the embedded base, and what can be done with their deltas."""
