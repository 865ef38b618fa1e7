"""The builder of the embedded base."""
