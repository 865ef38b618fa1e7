"""The report's pages, made of the numbers of cells alone: the same numbers give the same bytes."""
