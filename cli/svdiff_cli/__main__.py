"""`python -m svdiff_cli` is `svdiff`."""

from .main import main

main()
