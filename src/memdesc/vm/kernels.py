"""Debian kernels, fetched without installing them.

A kernel is named by its series ("6.1", "6.12", "7.2").  Its meta package is resolved to the
release that the archive holds today; the packages are downloaded with `apt-get download` and
unpacked with `dpkg -x` into the cache.  The package lists of every suite are read through
private apt directories, so that nothing of sid can ever leak into the machine.

To add a kernel, add a line to `SERIES`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memdesc.errors import VmError
from memdesc.vm.boot_image import unpack_elf
from memdesc.vm.host import cache_folder, locked, run_tool

__all__ = ["FURTHER", "SERIES", "Kernel", "Series", "cached", "fetch", "series_named"]


@dataclass(frozen=True)
class Series:
    """A kernel series and where Debian keeps it."""

    name: str
    """"6.12", or "6.12-normal" for another flavour of a series that is there already."""
    meta_package: str
    suite: str
    flavour: str

    @property
    def number(self) -> str:
        """The series without the flavour: what a release of it begins with."""
        return self.name.partition("-")[0]


SERIES: dict[str, Series] = {
    series.name: series
    for series in (
        # The cloud flavour of 6.1 has no CONFIG_MEMORY_FAILURE.
        Series("6.1", "linux-image-amd64", "bookworm", "normal"),
        Series("6.12", "linux-image-6.12-cloud-amd64", "bookworm", "cloud"),
        Series("7.2", "linux-image-cloud-amd64", "sid", "cloud"),
    )
}
"""The kernels that memdesc is checked on by its tests, by series."""

FURTHER: dict[str, Series] = {
    series.name: series for series in (Series("7.2-normal", "linux-image-amd64", "sid", "normal"),)
}
"""Kernels that `memdesc matrix --run --kernel NAME` checks and that no test boots."""


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel: everything that a guest needs to boot it."""

    series: str
    release: str
    package: str
    """Package and version, as in "linux-image-6.1.0-56-amd64 6.1.176-1"."""
    vmlinux: Path
    """The ELF kernel, with BTF and without DWARF."""
    config: Path
    modules: Path
    """.../lib/modules/RELEASE."""


def series_named(name: str) -> Series:
    """The series of that name. Raises VmError for an unknown one."""
    found = SERIES.get(name) or FURTHER.get(name)
    if found is None:
        known = ", ".join((*SERIES, *FURTHER))
        raise VmError(f"unknown kernel: {name!r}", hint=f"the kernels are {known}")
    return found


def cached(name: str) -> Kernel | None:
    """The kernel of a series that was fetched last, or None; asks no archive."""
    series = series_named(name)
    described = sorted(
        (path for path in _kernels().glob("*/kernel.json") if _series_of(path) == series.name),
        key=lambda path: path.stat().st_mtime,
    )
    for path in reversed(described):
        kernel = _load(path)
        if kernel is not None:
            return kernel
    return None


def fetch(name: str, *, refresh: bool = False) -> Kernel:
    """The kernel of a series, downloaded and unpacked unless it is in the cache.

    With `refresh` the archive is asked for a newer release first.  Raises VmError where it
    cannot be had: no apt, no network, or the archive moved on to another series.
    """
    series = series_named(name)
    with locked(cache_folder() / "kernels.lock"):
        kernel = None if refresh else cached(name)
        return kernel or _fetch(series, refresh=refresh)


# --- the cache ---------------------------------------------------------------------------


def _kernels() -> Path:
    return cache_folder() / "kernels"


def _series_of(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["series"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _load(path: Path) -> Kernel | None:
    """The kernel that kernel.json describes, if all of it is still there."""
    value = json.loads(path.read_text())
    root = path.parent
    kernel = Kernel(
        value["series"],
        value["release"],
        value["package"],
        root / "vmlinux",
        root / value["config"],
        root / value["modules"],
    )
    parts = (kernel.vmlinux, kernel.config, kernel.modules / "modules.dep")
    return kernel if all(part.exists() for part in parts) else None


def _fetch(series: Series, *, refresh: bool) -> Kernel:
    apt = _apt_options(series.suite, update=refresh)
    try:
        image = _image_package(series, apt)
        root = _unpacked(image, apt)
    except VmError:
        if refresh:
            raise
        # The lists are old, and the archive keeps only the newest release.
        apt = _apt_options(series.suite, update=True)
        image = _image_package(series, apt)
        root = _unpacked(image, apt)
    shown = run_tool(["apt-cache", *apt, "show", "--no-all-versions", image])
    version = next(line.split()[1] for line in shown.splitlines() if line.startswith("Version:"))
    return _described(series, f"{image} {version}", root)


def _unpacked(image: str, apt: Sequence[str]) -> Path:
    """The folder into which a kernel's packages were unpacked."""
    root = _kernels() / image
    if (root / "unpacked").exists():
        return root
    downloads = cache_folder() / "packages"
    downloads.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for package in _packages(image, apt):
        archive = _download(package, apt, downloads)
        run_tool(["dpkg", "-x", str(archive), str(root)])
        archive.unlink()
    (root / "unpacked").touch()
    return root


def _described(series: Series, package: str, root: Path) -> Kernel:
    """Find the parts of an unpacked kernel; both of Debian's package layouts are known."""
    release = root.name.removeprefix("linux-image-")
    modules = next(
        (path for top in ("lib", "usr/lib") if (path := root / top / "modules" / release).is_dir()),
        None,
    )
    if modules is None:
        raise VmError(f"{package} has no modules for {release}")
    inside = modules / "vmlinuz"  # since 7.x; before, both lie in /boot
    image = inside if inside.exists() else root / "boot" / f"vmlinuz-{release}"
    config = modules / "config" if inside.exists() else root / "boot" / f"config-{release}"
    if not (modules / "modules.dep").exists():
        run_tool(["depmod", "-b", str(modules.parents[2]), release])
    vmlinux = root / "vmlinux"
    if not vmlinux.exists():
        partial = root / "vmlinux.partial"
        partial.write_bytes(unpack_elf(image.read_bytes()))
        partial.rename(vmlinux)
    value = {
        "series": series.name,
        "release": release,
        "package": package,
        "config": str(config.relative_to(root)),
        "modules": str(modules.relative_to(root)),
    }
    (root / "kernel.json").write_text(json.dumps(value, indent=1))
    return Kernel(series.name, release, package, vmlinux, config, modules)


# --- apt ---------------------------------------------------------------------------------


def _apt_options(suite: str, *, update: bool) -> list[str]:
    """Options that confine apt to private directories and to one suite."""
    base = cache_folder() / f"apt-{suite}"
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": base / "sources",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": base / "preferences",
        "Dir::State::lists": base / "lists",
        "Dir::Cache": base / "cache",
        "APT::Sandbox::User": "root",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    stamp = base / "updated"
    if update or not stamp.exists():
        for folder in ("sources", "preferences", "lists/partial", "cache/archives/partial"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "sources" / "suite.sources").write_text("\n".join(_sources(suite)))
        run_tool(["apt-get", *flags, "update"])
        stamp.touch()
    return flags


def _sources(suite: str) -> Iterator[str]:
    """deb822 stanzas for a suite, on the mirrors that this machine is set up for."""
    wanted = "$(REPO_URI)|$(CODENAME)"
    listing = run_tool(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"])
    mirrors = [tuple(line.split("|")) for line in listing.splitlines()]
    debian = next((uri for uri, name in mirrors if uri.rstrip("/").endswith("/debian")), None)
    if debian is None:
        raise VmError(
            "this machine's apt knows no Debian mirror",
            hint="kernels are fetched from Debian; add its archive to /etc/apt/sources.list.d",
        )
    matching = [
        (uri, name) for uri, name in mirrors if name.split("-")[0] == suite and "debian" in uri
    ]
    for uri, name in matching or [(debian, suite)]:
        yield f"Types: deb\nURIs: {uri}\nSuites: {name}\nComponents: main"
        yield "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"


def _depends(package: str, apt: Sequence[str]) -> list[str]:
    """Names of the packages that a package depends on, alternatives included."""
    text = run_tool(["apt-cache", *apt, "depends", "--important", package])
    return [line.split()[-1] for line in text.splitlines() if "Depends:" in line]


def _image_package(series: Series, apt: Sequence[str]) -> str:
    """The package of today's release behind a meta package."""
    for name in _depends(series.meta_package, apt):
        if name.startswith(f"linux-image-{series.number}."):
            return name
    raise VmError(
        f"{series.meta_package} no longer leads to a {series.name} kernel",
        hint="the archive moved on: name another package in memdesc.vm.kernels.SERIES",
    )


def _packages(image: str, apt: Sequence[str]) -> list[str]:
    """Every package that holds a part of the kernel (one up to 6.x, several since 7.x)."""
    release = image.removeprefix("linux-image-")
    parts = [f"linux-{part}-{release}" for part in ("binary", "modules", "base")]
    found = [name for name in _depends(image, apt) if name in parts]
    return found or [image]


def _download(package: str, apt: Sequence[str], folder: Path) -> Path:
    """Download one package into a folder."""
    for old in folder.glob(f"{package}_*.deb"):
        old.unlink()
    run_tool(["apt-get", *apt, "download", package], cwd=folder)
    present = sorted(folder.glob(f"{package}_*.deb"))
    if not present:
        raise VmError(f"apt-get download {package} left no file")
    return present[-1]
