"""The forms in which a shifted layer computes: one file each, and a line in `choice`, which takes the cheapest."""
