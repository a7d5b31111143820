"""`python -m cbatch` is `cbatch`."""

from cbatch.cli import main

main()
