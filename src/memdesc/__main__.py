"""`python -m memdesc` is the `memdesc` command."""

from memdesc.cli import main

raise SystemExit(main())
