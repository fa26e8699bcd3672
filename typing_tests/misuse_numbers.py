"""Frame numbers, addresses and process ids are all integers, and not interchangeable."""

from memdesc.descriptors import DescriptorIndex
from memdesc.types import CgroupInode, Pfn, PfnRange, PhysAddr, Pid, VirtAddr, pfn_of, phys_of


def address_for_frame(index: DescriptorIndex, address: PhysAddr) -> object:
    return index.page(address)  # E: argument


def plain_number_for_frame(index: DescriptorIndex) -> object:
    return index.page(4096)  # E: argument


def frame_for_address(pfn: Pfn) -> Pfn:
    return pfn_of(pfn)  # E: argument


def virtual_for_physical(address: VirtAddr) -> Pfn:
    return pfn_of(address)  # E: argument


def number_for_frame_in_range() -> PfnRange:
    return PfnRange(Pfn(0), 16)  # E: argument


def arithmetic_forgets_the_kind(pfn: Pfn) -> PhysAddr:
    """A sum is a plain number until somebody says what it is."""
    return phys_of(pfn + 1)  # E: argument


def pid_for_cgroup(pid: Pid) -> CgroupInode:
    return pid  # E: return
