"""The experiments of the paper as cells, each of which is measured once."""
