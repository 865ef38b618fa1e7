"""The settings of a run: checked before anything starts, read from and written to run files."""
