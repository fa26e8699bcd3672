"""`python -m agent`: one scenario from standard input, its answer to standard output."""

from .controller import main

main()
