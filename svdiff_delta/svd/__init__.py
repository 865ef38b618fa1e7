"""Decompose a base's weights: fingerprints, singular vectors, their cache, projections (spec, section 6)."""
