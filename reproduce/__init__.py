"""What reproduces the paper; not part of the package."""
