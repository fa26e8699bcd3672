"""A scenario on the model.

Each verb is a function `(run, process, args) -> value` in `model_verbs`, where `process` is the
model's process, or None for verbs of nobody in particular.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from memdesc.kernels.pagemap import PM
from memdesc.kernels.release import KernelRelease
from memdesc.mm.areas.vma import VM, Vma
from memdesc.mm.files.inode import PARTLY
from memdesc.mm.frames import Kind
from memdesc.mm.kernel import Kernel
from memdesc.mm.process import Errno, Process, Signal
from memdesc.mm.seen import kpagecount, kpageflags, pagemap_entry, shows_huge, smaps, vm_flags
from memdesc.scenarios.observation import RawPage, RawVma, Seen
from memdesc.scenarios.outcome import Outcome, Value
from memdesc.scenarios.skipped import SkippedError
from memdesc.types import PAGE_SHIFT

if TYPE_CHECKING:
    from memdesc.scenarios.step import Step

__all__ = ["ModelRunner", "verb"]


VerbFunction = Callable[["ModelRunner", Any, Mapping[str, Any]], Value]

VERB_FUNCTIONS: dict[str, VerbFunction] = {}


def verb(name: str) -> Callable[[VerbFunction], VerbFunction]:
    """Say that a function does a verb on the model."""

    def register(function: VerbFunction) -> VerbFunction:
        VERB_FUNCTIONS[name] = function
        return function

    return register


class ModelRunner:
    """Does the steps of a scenario on the model of a series ("6.12")."""

    def __init__(self, series: str, *, check: bool = True) -> None:
        self.release = KernelRelease.parse(series)
        self.series = series
        self._check = check
        self.settings: Mapping[str, str] = {}
        """Knobs that are set before each scenario, for machines that are not as quiet as guests."""
        self.kernel = Kernel(series)
        self.drains = True
        """Whether what waits in the CPU's batches is put on the LRU lists after each step."""
        self.remembered: dict[str, list[int]] = {}
        """Frames by the scenario's name."""
        self._words: dict[int, int] = {0: 0}
        """Word of a tag -> the model's number of that content."""
        self._contents: list[int] = [0]
        _import_verbs()

    # --- the protocol of a runner --------------------------------------------------------

    def start(self, scenario: Any = None, release: KernelRelease | None = None) -> None:
        """A fresh machine."""
        self.kernel = Kernel(self.series)
        for name, value in self.settings.items():
            self.kernel.set_knob(name, value)
        self.drains = True
        self.remembered = {}

    def do(self, step: Step) -> Outcome:
        """Do one step; what it gave."""
        kernel = self.kernel
        kernel.fired.clear()
        process = self.process(step.process) if step.process else None
        function = VERB_FUNCTIONS.get(step.verb)
        if function is None:
            raise SkippedError(f"the model does not know `{step.verb}`", line=step.line)
        try:
            outcome = Outcome(value=function(self, process, step.args))
        except Errno as error:
            outcome = Outcome(errno=error.name)
        except Signal as signal:
            outcome = Outcome(signal=signal.name, code=signal.code)
        if self.drains:
            kernel.drain()
        if self._check:
            from memdesc.mm.check import check

            check(kernel)
        return outcome

    def see(self, step: Step) -> Seen:
        """All that can be seen of what the step watches."""
        pages: dict[str, dict[str, list[RawPage]]] = {}
        vmas: dict[str, list[RawVma]] = {}
        for name, process in self.kernel.processes.items():
            watched = step.watch.get(name, {})
            pages[name] = {
                mapping: [
                    self._page(process, vpn)
                    for vpn in range(place.address >> PAGE_SHIFT, place.end >> PAGE_SHIFT)
                ]
                for mapping, place in watched.items()
            }
            vmas[name] = [self._vma(process, vma) for vma in process.mm.vmas]
        frames = {name: [self._frame(pfn) for pfn in self.remembered[name]] for name in step.frames}
        return Seen(pages, vmas, self.counters(), frames)

    def rules(self) -> list[str]:
        """Rules that the last step applied, in order."""
        return list(self.kernel.fired)

    def end(self) -> None:
        """Nothing is left behind."""

    # --- for verbs -----------------------------------------------------------------------

    def process(self, name: str) -> Process:
        """A process by name. Raises SkippedError where making it failed, and the steps went on."""
        found = self.kernel.processes.get(name)
        if found is None:
            raise SkippedError(f"there is no process {name}: making it failed", line=None)
        return found

    def content(self, word: int) -> int:
        """The model's number of a page that is filled with a word."""
        number = self._words.get(word)
        if number is None:
            number = self._words[word] = len(self._contents)
            self._contents.append(word)
        return number

    def contents(self, args: Mapping[str, Any], pages: int) -> list[int]:
        """The model's numbers of a TAGS argument: one per page, or one for all of them."""
        words = args["content"]["words"]
        return [self.content(word) for word in (words * pages if len(words) == 1 else words)]

    def word(self, content: int) -> int:
        """The word that fills a page of that content."""
        return self._contents[content & ~PARTLY]

    def counters(self) -> dict[str, int]:
        """Counters of the system that scenarios may ask for."""
        return self.kernel.counters()

    # --- helpers -------------------------------------------------------------------------

    def _page(self, process: Process, vpn: int) -> RawPage:
        kernel, mm = self.kernel, process.mm
        vma = mm.vmas.find(vpn)
        if vma is None:
            return RawPage(0)
        entry = pagemap_entry(kernel, mm, vma, vpn)
        if not entry >> 63:
            return RawPage(entry)
        pfn = entry & ((1 << 55) - 1)
        pmd = mm.tables.pmd_of(vpn)
        flags = kpageflags(kernel, pfn)
        readable = not vma.flags & (VM.PFNMAP | VM.IO) and kernel.content_readable(pfn)
        return RawPage(
            entry,
            flags,
            kpagecount(kernel, pfn),
            kernel.refs(pfn),
            self.word(int(kernel.f.content[pfn])) if readable else None,
            huge=shows_huge(kernel, vma, pmd),
            aliased=bool(kernel.f.content[pfn] & PARTLY),
            head_flags=kpageflags(kernel, kernel.head(pfn)) if kernel.head(pfn) != pfn else 0,
        )

    def _frame(self, pfn: int) -> RawPage:
        """A frame that nobody may map."""
        kernel = self.kernel
        entry = int(PM.PRESENT) | pfn
        if kernel.f.kind[pfn] == Kind.NONE:
            return RawPage(entry, refs=0)
        content = int(kernel.f.content[pfn])
        return RawPage(
            entry,
            kpageflags(kernel, pfn),
            kpagecount(kernel, pfn),
            kernel.refs(pfn),
            self.word(content) if kernel.content_readable(pfn) else None,
            aliased=bool(content & PARTLY),
        )

    def _vma(self, process: Process, vma: Vma) -> RawVma:
        kernel = self.kernel
        perms = "".join(
            letter if vma.flags & flag else "-"
            for letter, flag in (("r", VM.READ), ("w", VM.WRITE), ("x", VM.EXEC))
        )
        return RawVma(
            vma.vpn_start << PAGE_SHIFT,
            vma.vpn_end << PAGE_SHIFT,
            perms + ("s" if vma.flags & VM.MAYSHARE else "p"),
            vma.pgoff << PAGE_SHIFT if vma.file is not None else 0,
            vma.file.path if vma.file is not None else (f"[anon:{vma.name}]" if vma.name else ""),
            vm_flags(kernel, vma),
            smaps(kernel, process.mm, vma),
        )


def _import_verbs() -> None:
    package = importlib.import_module("memdesc.scenarios.model_verbs")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
