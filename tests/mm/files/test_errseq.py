"""errseq against a description of what it must do, over all short histories."""

from __future__ import annotations

from itertools import product

from memdesc.mm.files import errseq


class Told:
    """What each open file must hear, by counting errors and remembering who was told."""

    def __init__(self) -> None:
        self.errors = 0
        self.last = ""
        self.seen = True
        self.files: list[int] = []

    def fail(self, name: str) -> None:
        if self.seen:
            self.errors += 1
        self.last, self.seen = name, False

    def open(self) -> None:
        self.files.append(self.errors if self.seen else self.errors - 1)

    def ask(self, file: int) -> str:
        if self.files[file] == self.errors:
            return ""
        self.files[file], self.seen = self.errors, True
        return self.last


def test_all_histories_of_seven_steps_with_two_kinds_of_error() -> None:
    for history in product(("EIO", "ENOSPC", "open", "ask 0", "ask 1"), repeat=7):
        value, files, told = 0, [0], Told()
        told.open()
        # A file that has heard of an error and one that is told of the next before it is seen
        # differ only by who asks; `told` counts an error that nobody saw once.
        for step in history:
            if step == "open":
                files.append(errseq.sample(value))
                told.open()
            elif step.startswith("ask"):
                at = int(step[4])
                if at >= len(files):
                    continue
                value, files[at], heard = errseq.check_and_advance(value, files[at])
                assert heard == told.ask(at), history
            else:
                value = errseq.set_error(value, step)
                told.fail(step)


def test_checking_does_not_tell() -> None:
    value = errseq.set_error(0, "EIO")
    assert errseq.check(value, 0) == "EIO"
    assert errseq.sample(value) == 0
    assert not value & errseq.SEEN


def test_the_counter_wraps_without_touching_the_error() -> None:
    value = (errseq.SEEN | 0xFFFFE000) & 0xFFFFFFFF
    value = errseq.set_error(value, "EIO")
    assert value == 5
