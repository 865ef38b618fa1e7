"""Arithmetic on deltas without torch: sums, selection, truncation, quantization, merging (spec, section 7)."""
