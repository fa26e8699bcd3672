"""`memdesc scenario random`."""

from __future__ import annotations

import argparse

HELP = "write a scenario of random steps; the same seed gives the same"
DESCRIPTION = (
    "Print a scenario file of random steps: processes that map, write, fork, pin, advise, unmap,\n"
    "exit, while pages are merged and reclaimed. Any step may fail (`-> any`): model and kernel\n"
    "must then fail alike."
)
EXAMPLES = """
  memdesc scenario random 7 > random.md
  memdesc scenario run random.md --on model:7.2      every account of the model agrees?
  memdesc scenario compare random.md --on 6.12       and a real kernel does the same?
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seed", type=seed, metavar="SEED", help="any whole number")
    parser.add_argument(
        "--steps", type=steps, default=300, metavar="N", help="how many (default: 300)"
    )


def run(options: argparse.Namespace) -> int:
    from memdesc.scenarios.random_steps import random_scenario

    print(random_scenario(options.seed, options.steps), end="")
    return 0


def seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text[:40]!r}") from None


def steps(text: str) -> int:
    number = seed(text)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError("1 to 100000 steps")
    return number
