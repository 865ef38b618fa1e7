"""Base models on disk: their files, components, layouts and weights, and which weights are shifted how."""
