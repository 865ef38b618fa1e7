"""Paint many pictures at once: what they call meets in batches, in which every picture has its own δ."""
