"""The `svdiff` command line, one file per group of commands."""
