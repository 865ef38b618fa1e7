"""Painting: pipelines, schedulers, prompts and seeds, deltas on them, edits and sheets."""
