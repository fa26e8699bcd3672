"""A place for scenarios that is neither the model nor a kernel: small enough to be read.

Memory is private and anonymous; fork copies entries, and a write to a page that others map copies
it. That is all it knows, and what it shows are words as a kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from memdesc.kernels.kpageflags import KPF
from memdesc.kernels.pagemap import PM
from memdesc.kernels.release import KernelRelease
from memdesc.scenarios.observation import RawPage, RawVma, Seen
from memdesc.scenarios.outcome import Outcome
from memdesc.scenarios.places import PAGE
from memdesc.scenarios.scenario import Plan
from memdesc.scenarios.step import Step

ANON = KPF.UPTODATE | KPF.LRU | KPF.MMAP | KPF.ANON | KPF.SWAPBACKED


@dataclass
class Frame:
    number: int
    content: int
    mappers: set[tuple[str, int]] = field(default_factory=set)


class FakeRunner:
    """`flaw` is a step's text after which the map counts are wrong, or which then fails."""

    def __init__(self, series: str = "6.12", *, flaw: str = "", refuses: str = "") -> None:
        self.release = KernelRelease.parse(series)
        self.flaw, self.refuses = flaw, refuses
        self.is_flawed = False
        self.running = False

    def start(self, plan: Plan, release: KernelRelease) -> None:
        assert not self.running
        self.running = True
        self.plan = plan
        self.numbers = count(1000)
        self.tables: dict[str, dict[int, Frame]] = {}
        self.areas: dict[str, dict[int, str]] = {}
        self.is_flawed = False

    def end(self) -> None:
        self.running = False

    def rules(self) -> list[str]:
        return ["a rule of the fake"]

    def do(self, step: Step) -> Outcome:
        self.is_flawed |= step.text == self.flaw
        if step.text == self.refuses:
            return Outcome(errno="ENOMEM")
        args, mine = step.args, step.process or ""
        pages = _pages(args.get("range"))
        if step.verb in ("read", "write"):
            for page in pages:
                perms = self.areas[mine].get(page)
                if perms is None:
                    return Outcome(signal="SIGSEGV", code="MAPERR")
                if step.verb == "write" and "w" not in perms:
                    return Outcome(signal="SIGSEGV", code="ACCERR")
        match step.verb:
            case "process":
                self.tables[args["name"]], self.areas[args["name"]] = {}, {}
            case "fork":
                child = args["child"]
                self.tables[child] = dict(self.tables[mine])
                self.areas[child] = dict(self.areas[mine])
                for page, frame in self.tables[child].items():
                    frame.mappers.add((child, page))
            case "map":
                self.areas[mine] |= dict.fromkeys(pages, args["prot"])
            case "protect":
                self.areas[mine] |= dict.fromkeys(pages, args["prot"])
            case "unmap":
                for page in pages:
                    self.areas[mine].pop(page, None)
                    self._drop(mine, page)
            case "write":
                words = args["content"]["words"]
                for index, page in enumerate(pages):
                    self._write(mine, page, words[index if len(words) > 1 else 0])
            case "read":
                table = self.tables[mine]
                return Outcome(tuple(table[p].content if p in table else 0 for p in pages))
            case "exit":
                for page in list(self.tables[mine]):
                    self._drop(mine, page)
                del self.tables[mine], self.areas[mine]
            case _:
                raise AssertionError(step.verb)
        return Outcome()

    def see(self, step: Step) -> Seen:
        pages = {
            process: {
                name: [self._raw(process, page) for page in _pages_of(place.address, place.pages)]
                for name, place in step.watch[process].items()
            }
            for process in self.tables
        }
        vmas = {process: self._vmas(process) for process in self.tables}
        return Seen(pages, vmas, {"ksm.pages_shared": 0})

    def _write(self, process: str, page: int, word: int) -> None:
        table = self.tables[process]
        if page in table and len(table[page].mappers) == 1:
            table[page].content = word
            return
        self._drop(process, page)
        table[page] = Frame(next(self.numbers), word, {(process, page)})

    def _drop(self, process: str, page: int) -> None:
        frame = self.tables[process].pop(page, None)
        if frame is not None:
            frame.mappers.discard((process, page))

    def _raw(self, process: str, page: int) -> RawPage:
        frame = self.tables[process].get(page)
        if frame is None:
            return RawPage(0)
        alone = len(frame.mappers) == 1
        mapcount = len(frame.mappers) + self.is_flawed
        return RawPage(
            PM.PRESENT.value | frame.number | (PM.EXCLUSIVE.value if alone else 0),
            (ANON | (KPF.OWNER_2 if alone else 0) | KPF.REFERENCED).value,
            mapcount,
            len(frame.mappers),
            frame.content,
            huge=False,
        )

    def _vmas(self, process: str) -> list[RawVma]:
        found: list[RawVma] = []
        for page, perms in sorted(self.areas[process].items()):
            shown = "".join(letter if letter in perms else "-" for letter in "rwx") + "p"
            last = found[-1] if found else None
            if last and last.end == page * PAGE and last.perms == shown:
                start = last.start
                found.pop()
            else:
                start = page * PAGE
            end = (page + 1) * PAGE
            rss = 4 * sum(start <= p * PAGE < end for p in self.tables[process])
            found.append(RawVma(start, end, shown, 0, "", ("rd",), {"Rss": rss}))
        return found


def _pages(place: object) -> range:
    return _pages_of(place["address"], place["pages"]) if isinstance(place, dict) else range(0)


def _pages_of(address: int, pages: int) -> range:
    return range(address // PAGE, address // PAGE + pages)
