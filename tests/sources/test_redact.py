"""What a capture gives away: by default no name that somebody chose."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import worlds
from captures import attribution, manifest, world
from hypothesis import given
from hypothesis import strategies as st

from memdesc.rules.procedure import RULES
from memdesc.sources.capture import Capture
from memdesc.sources.capture_write import write_capture
from memdesc.sources.redact import _ENDINGS, Redactor
from memdesc.sources.source import RawSource
from memdesc.types import MemoryType

HASH = re.compile(r"~[0-9a-f]{10}")
SECRETS = ["testhost", "web", "db", "web server", "secret", "alice", "hunter2", "/srv/app"]


@pytest.fixture
def redact() -> Redactor:
    return Redactor(b"salt")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "[heap]",
        "[stack]",
        "[vdso]",
        "[vvar]",
        "[vvar_vclock]",
        "[vsyscall]",
        "[uprobes]",
        "/dev/zero (deleted)",
        "/dev/kvm",
        "/dev/dri/renderD128",
        "/dev/nvidia0",
        "anon_inode:[io_uring]",
        "anon_inode:kvm-vcpu:0",
        "/anon_hugepage (deleted)",
    ],
)
def test_the_kernels_own_names_stay(redact: Redactor, name: str) -> None:
    assert redact.mapping(name) == name


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("/usr/lib/x86_64-linux-gnu/libsecret.so.6", r"/usr/lib/x86_64-linux-gnu/#\.so"),
        ("/usr/lib/libsecret.so", r"/usr/lib/#\.so"),
        ("/home/alice/app.py", r"/home/#/#\.py"),
        ("/home/alice/usr/lib", r"/home/#/#/#"),
        ("/srv/db/x (deleted)", r"/srv/#/# \(deleted\)"),
        ("/usr/lib", r"/usr/#"),
        ("/memfd:secret (deleted)", r"/memfd:# \(deleted\)"),
        ("/SYSV00abcdef (deleted)", r"/SYSV# \(deleted\)"),
        ("[anon:secret heap]", r"\[anon:#\]"),
        ("[anon_shmem:secret]", r"\[anon_shmem:#\]"),
        ("/dev/shm/secret", r"/dev/shm/#"),
        ("/dev/zero/secret", r"/dev/#/#"),
        ("[secret]", r"#"),
        ("secret", r"#"),
        ("/home/alice/anon_inode:[x]", r"/home/#/#"),
        ("/a\n[heap]", r"/#"),
    ],
)
def test_chosen_names_are_hashed_in_place(redact: Redactor, name: str, pattern: str) -> None:
    assert re.fullmatch(pattern.replace("#", HASH.pattern), redact.mapping(name))


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/", "/"),
        ("/system.slice/nginx.service", r"/system.slice/#\.service"),
        ("/user.slice/user-1000.slice/session-3.scope", r"/user.slice/#\.slice/#\.scope"),
        ("/kubepods.slice/kubepods-pod7.slice/cri-1.scope", r"/kubepods.slice/#\.slice/#\.scope"),
        ("/web/cache", r"/#/#"),
        ("", ""),
    ],
)
def test_cgroup_paths_keep_their_structure(redact: Redactor, path: str, pattern: str) -> None:
    assert re.fullmatch(pattern.replace("#", HASH.pattern), redact.cgroup(path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ""),
        ("quiet ro", "quiet ro"),
        ("root=UUID=12-34 quiet  hugepages=16", "root=~ quiet hugepages=~"),
        ('dyndbg="file alice.c +p" ro', "dyndbg=~ ro"),
        ("ro -- password=hunter2", "ro"),
        ("debug_guardpage_minorder=1", "debug_guardpage_minorder=~"),
    ],
)
def test_the_command_line_keeps_names_of_parameters(
    redact: Redactor, line: str, expected: str
) -> None:
    assert redact.cmdline(line) == expected


def test_reasons_keep_only_paths_of_the_kernel(redact: Redactor) -> None:
    text = redact.reason("cannot open /home/alice/kpagecount: No such file or directory")
    assert "alice" not in text
    assert text.endswith("No such file or directory")
    kept = "cannot open /proc/kpagecount: Permission denied"
    assert redact.reason(kept) == kept


def test_equal_names_stay_equal_and_salts_differ() -> None:
    one, two = Redactor(), Redactor()
    assert one.name("alice") == one.name("alice") != one.name("bob")
    assert one.name("alice") != two.name("alice")
    assert HASH.fullmatch(one.name("alice"))


@given(st.lists(st.text(st.characters(exclude_characters="/"), min_size=4), min_size=1))
def test_no_component_of_a_path_shows(parts: list[str]) -> None:
    path = "/alice/" + "/".join(parts)
    for text in (Redactor(b"s").path(path), Redactor(b"s").cgroup("/x" + path)):
        hidden = [HASH.sub("", part) for part in text.split("/")]
        assert all(part in ("", *_ENDINGS) for part in hidden)
    assert Redactor(b"s").path(path).count("/") == path.count("/")


# --- whole captures ----------------------------------------------------------------------


def texts(path: Path) -> str:
    """Every text of a capture, decoded."""
    capture = Capture(path)
    who = capture.attribution()
    parts = [json.dumps(capture.machine.to_json()), json.dumps(manifest(path))]
    parts += [*who.processes.comm, *who.processes.cgroup, *who.vmas.names]
    parts += [row for batch in capture._files.batches("cgroups") for row in batch["path"]]
    return "\n".join(parts)


def tree(folder: Path) -> worlds.ProcSource:
    return worlds.tree(
        folder,
        [0x400, 0x868, 0x868],
        cgroups=[0, 7, 8],
        files={
            "proc/cmdline": "root=/dev/alice password=hunter2 ro\n",
            "cgroups.tsv": "7\t/web\n8\t/system.slice/db.service\n",
        },
    )


def test_a_capture_gives_no_name_away(tmp_path: Path) -> None:
    source = tree(tmp_path / "alice")
    write_capture(tmp_path / "capture", source.scan(), attribution=attribution())
    everything = texts(tmp_path / "capture")
    rules = re.compile(r'"rules": \{.*?\}', re.DOTALL)
    values = re.sub(r"~[0-9a-f]{10}|[0-9a-f]{64}", "", rules.sub("", everything))
    for secret in SECRETS:
        assert secret not in values, secret
    for raw in (tmp_path / "capture").iterdir():
        assert not any(secret.encode() in raw.read_bytes() for secret in ("testhost", "hunter2"))
    machine = Capture(tmp_path / "capture").machine
    assert machine.cmdline == "root=~ password=~ ro"
    assert machine.release.text == "7.2.13"
    assert machine.zones == source.machine.zones
    assert machine.cgroups[8].startswith("/system.slice/~")
    said = manifest(tmp_path / "capture")["redaction"]
    assert said["names"] == "hashed"
    assert "salt" in said["rules"]["how"]


def test_the_same_cgroup_has_the_same_hash_everywhere(tmp_path: Path) -> None:
    write_capture(tmp_path / "capture", tree(tmp_path / "t").scan(), attribution=attribution())
    capture = Capture(tmp_path / "capture")
    web = capture.machine.cgroups[7]
    assert web in capture.attribution().processes.cgroup
    paths = [path for batch in capture._files.batches("cgroups") for path in batch["path"]]
    assert paths[capture.cgroup_inodes.tolist().index(7)] == web


def test_two_captures_cannot_be_matched(tmp_path: Path) -> None:
    source = tree(tmp_path / "t")
    for name in ("one", "two"):
        write_capture(tmp_path / name, source.scan(), attribution=attribution())
    hashes = [set(HASH.findall(texts(tmp_path / name))) for name in ("one", "two")]
    assert len(hashes[0]) == len(hashes[1]) > 5
    assert not hashes[0] & hashes[1]


def test_names_are_kept_when_asked_for(tmp_path: Path) -> None:
    source = tree(tmp_path / "t")
    write_capture(tmp_path / "capture", source.scan(), attribution=attribution(), names=True)
    everything = texts(tmp_path / "capture")
    for secret in SECRETS:
        assert secret in everything, secret
    assert manifest(tmp_path / "capture")["redaction"] == {"names": "kept", "rules": {}}


def test_the_path_of_the_source_is_no_secret_leak(tmp_path: Path) -> None:
    folder = tmp_path / "alice"
    folder.mkdir()
    source = RawSource(worlds.write_words(folder / "flags", [0x400]))
    scan = source.scan()
    scan.unseen["mapcounts"] = f"cannot open {folder}/kpagecount: No such file or directory"
    write_capture(tmp_path / "capture", scan)
    assert "alice" not in (tmp_path / "capture/manifest.json").read_text()


def test_names_that_are_no_unicode_are_written(tmp_path: Path) -> None:
    source = world(tmp_path / "world", 100)
    scan = source.scan()
    object.__setattr__(scan.machine, "cgroups", {7: "/caf\udce9", 8: "/b"})
    for names in (True, False):
        write_capture(tmp_path / "capture", scan, names=names, force=True)
        Capture(tmp_path / "capture").verify()
        scan = source.scan()


def test_types_and_rules_are_not_names() -> None:
    """Nothing in the vocabulary looks like a hash."""
    assert not any(HASH.search(text) for text in [*RULES, *(kind.value for kind in MemoryType)])
