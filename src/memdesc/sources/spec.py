"""What --source takes, in words. Apart from the sources so that help texts load nothing."""

from __future__ import annotations

__all__ = ["SOURCE_HELP"]

SOURCE_HELP = """\
live              this machine (the default): struct pages where permitted, else /proc
live:struct       this machine's struct pages, through BPF (root)
live:proc         this machine through /proc
VMCORE            a crash dump, ELF or kdump, or /proc/kcore (see --vmlinux)
DIR               a capture made with `memdesc capture`
FILE              a raw kpageflags file (see --kpagecount, --kernel)
tree:DIR          a copy of another machine's /proc and /sys
bundled:NAME      a capture that ships with memdesc: no privilege needed"""
