"""Selectors: which parameters `unet-ca-kv` or `(16,down,1)` stands for (spec, section 7.6)."""
