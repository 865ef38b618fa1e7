"""The sections of the report, made of the numbers of cells alone."""
