"""What runs beside the kernel under test: real processes that do a scenario's steps.

This folder is pushed into guests as files (and started as a program for `here`), so its modules
import only the standard library and each other.

`controller` reads the steps, forks one process per `process` step (`process`) and tells each what
to do; the steps themselves are `access` (loads and stores), `memory`, `files` and `pins`;
`knobs` sets the system up; `look` reads what /proc shows of the processes, without touching them.
"""
