"""`python -m actor`: one scenario from standard input, its answer to standard output."""

from .controller import main

main()
