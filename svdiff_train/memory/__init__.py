"""Means to train large models: outputs that are kept, weights that are quantized or shared out, and a plan."""
