"""Baking: a base with δ in it as a full checkpoint (spec, section 6.6)."""
