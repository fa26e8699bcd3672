"""Fetch Debian kernels without installing them.

A kernel is named by its series ("6.1", "6.12", "7.2").  Its meta package is resolved to the release
that the archive holds today, the packages are downloaded with ``apt-get download`` and unpacked
with ``dpkg -x`` into a cache directory.  Nothing is installed, and the package lists of every suite
are read through private apt directories, so that sid can never leak into the machine.

The boot image is unpacked to the ELF file inside it: QEMU enters that directly through its PVH
note, which is faster than the decompressor and gives fixed addresses (no KASLR, 4-level page
tables).
"""

from __future__ import annotations

import lzma
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


class RecordError(Exception):
    """A recording cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Series:
    """A kernel series and where Debian keeps it."""

    name: str
    meta_package: str
    suite: str


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel: everything a guest needs to boot it."""

    series: str
    release: str
    package: str
    vmlinux: Path
    config: Path
    modules: Path  # .../lib/modules/RELEASE


SERIES: dict[str, Series] = {
    series.name: series
    for series in (
        # Only the normal flavour of 6.1 has CONFIG_MEMORY_FAILURE.
        Series("6.1", "linux-image-amd64", "bookworm"),
        Series("6.12", "linux-image-6.12-cloud-amd64", "bookworm"),
        Series("7.2", "linux-image-cloud-amd64", "sid"),
    )
}

_ELF = b"\x7fELF"
_LZ4_COMMAND = ("lz4", "-dc")
_ZSTD_COMMAND = ("zstd", "-dc")


def run(command: Sequence[str], *, cwd: Path | None = None, data: bytes | None = None) -> bytes:
    """Run a host command and return its standard output; a failure becomes a RecordError."""
    try:
        done = subprocess.run(command, cwd=cwd, input=data, capture_output=True, check=False)
    except FileNotFoundError:
        raise RecordError(f"{command[0]} is not installed on this machine") from None
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise RecordError(f"{' '.join(command[:3])} ...: {reason[-1] if reason else 'failed'}")
    return done.stdout


def fetch(name: str, cache: Path) -> Kernel:
    """The kernel of a series, downloaded and unpacked below ``cache`` unless it is there."""
    try:
        series = SERIES[name]
    except KeyError:
        raise RecordError(f"unknown kernel {name!r}; known: {', '.join(SERIES)}") from None
    apt = _apt_options(series, cache)
    image = _image_package(series, apt)
    packages = _packages(image, apt)
    root = cache / "kernels" / image
    if not (root / "unpacked").exists():
        downloads = cache / "packages"
        downloads.mkdir(parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        for package in packages:
            archive = _download(package, apt, downloads)
            run(["dpkg", "-x", str(archive), str(root)])
        (root / "unpacked").touch()
    return _describe(series, image, root, apt)


def _describe(series: Series, image: str, root: Path, apt: Sequence[str]) -> Kernel:
    """Find the parts of an unpacked kernel; both of Debian's package layouts are known."""
    release = image.removeprefix("linux-image-")
    modules = next(
        (path for top in ("lib", "usr/lib") if (path := root / top / "modules" / release).is_dir()),
        None,
    )
    if modules is None:
        raise RecordError(f"{image} has no module directory for {release}")
    split = modules / "vmlinuz"  # since 7.x; before, both lie in /boot
    boot_image = split if split.exists() else root / "boot" / f"vmlinuz-{release}"
    config = modules / "config" if split.exists() else root / "boot" / f"config-{release}"
    if not (modules / "modules.dep").exists():
        run(["depmod", "-b", str(modules.parents[2]), release])
    vmlinux = root / "vmlinux"
    if not vmlinux.exists():
        partial = root / "vmlinux.partial"
        partial.write_bytes(unpack_elf(boot_image.read_bytes()))
        partial.rename(vmlinux)
    version = run(["apt-cache", *apt, "show", "--no-all-versions", image]).decode()
    number = next(line.split()[1] for line in version.splitlines() if line.startswith("Version:"))
    return Kernel(series.name, release, f"{image} {number}", vmlinux, config, modules)


# -- apt ---------------------------------------------------------------------------------------


def _apt_options(series: Series, cache: Path) -> list[str]:
    """Options that confine apt to private directories, reading only the wanted suite."""
    base = (cache / f"apt-{series.suite}").absolute()
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
    if not stamp.exists():
        for folder in ("sources", "preferences", "lists/partial", "cache/archives/partial"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "sources" / "suite.sources").write_text("\n".join(_sources(series.suite)))
        run(["apt-get", *flags, "update"])
        stamp.touch()
    return flags


def _sources(suite: str) -> Iterator[str]:
    """deb822 stanzas for a suite, on the mirrors that this machine is already set up for."""
    listing = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(CODENAME)", "Created-By: Packages"]
    )
    mirrors = [tuple(line.split("|")) for line in listing.decode().splitlines()]
    debian = next((uri for uri, name in mirrors if uri.rstrip("/").endswith("/debian")), None)
    if debian is None:
        raise RecordError("no Debian mirror in this machine's apt sources")
    wanted = [
        (uri, name) for uri, name in mirrors if name.split("-")[0] == suite and "debian" in uri
    ]
    for uri, name in wanted or [(debian, suite)]:
        yield f"Types: deb\nURIs: {uri}\nSuites: {name}\nComponents: main"
        yield "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"


def _depends(package: str, apt: Sequence[str]) -> list[str]:
    """Names of the packages that a package depends on, alternatives included."""
    text = run(["apt-cache", *apt, "depends", "--important", package]).decode()
    return [line.split()[-1] for line in text.splitlines() if "Depends:" in line]


def _image_package(series: Series, apt: Sequence[str]) -> str:
    """The package of today's release behind a meta package."""
    for name in _depends(series.meta_package, apt):
        if name.startswith(f"linux-image-{series.name}."):
            return name
    raise RecordError(f"{series.meta_package} no longer leads to a {series.name} kernel")


def _packages(image: str, apt: Sequence[str]) -> list[str]:
    """Every package that holds a part of the kernel (one up to 6.x, several since 7.x)."""
    release = image.removeprefix("linux-image-")
    parts = [f"linux-{part}-{release}" for part in ("binary", "modules", "base")]
    found = [name for name in _depends(image, apt) if name in parts]
    return found or [image]


def _download(package: str, apt: Sequence[str], folder: Path) -> Path:
    """Download one package into a folder, unless it is there."""
    present = sorted(folder.glob(f"{package}_*.deb"))
    if not present:
        run(["apt-get", *apt, "-o", "APT::Sandbox::User=root", "download", package], cwd=folder)
        present = sorted(folder.glob(f"{package}_*.deb"))
    if not present:
        raise RecordError(f"apt-get download {package} left no file")
    return present[-1]


# -- the boot image ----------------------------------------------------------------------------


def unpack_elf(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage.

    Every place that looks like the start of a compressed stream is tried until one decompresses to
    an ELF file.  What follows the stream in the image is not part of it and is ignored.
    """
    formats = (
        (b"\x28\xb5\x2f\xfd", _zstd),
        (b"\xfd7zXZ\x00", _xz),
        (b"\x02\x21\x4c\x18", _lz4),
        (b"\x1f\x8b\x08", _gzip),
    )
    for magic, unpack in formats:
        start = image.find(magic)
        while start >= 0:
            content = unpack(image[start:])
            if content.startswith(_ELF):
                return content
            start = image.find(magic, start + 1)
    raise RecordError("no compressed ELF kernel in this boot image")


def _external(command: Sequence[str], data: bytes) -> bytes:
    """Output of a decompressor that may complain about trailing bytes."""
    try:
        return subprocess.run(command, input=data, capture_output=True, check=False).stdout
    except FileNotFoundError:
        raise RecordError(f"{command[0]} is needed to unpack this kernel") from None


def _zstd(data: bytes) -> bytes:
    return _external(_ZSTD_COMMAND, data)


def _lz4(data: bytes) -> bytes:
    return _external(_LZ4_COMMAND, data)


def _xz(data: bytes) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(data)
    except lzma.LZMAError:
        return b""


def _gzip(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data)
    except zlib.error:
        return b""
