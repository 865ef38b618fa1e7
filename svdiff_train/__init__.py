"""Training, sampling and evaluation of spectral shifts, on top of svdiff_delta."""
