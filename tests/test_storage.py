"""Sets at rest: what is durable when, what counts as a backup, and how damage is named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vdi_ext.jobs.recovery import recover
from vdi_ext.storage import (
    Manifest,
    SetInUseError,
    SetWriter,
    StorageError,
    StoredSet,
    VerificationError,
    exclusive,
    require_space,
)


def content(number: int, size: int = 3 << 20) -> bytes:
    """Bytes of one stripe, different for each."""
    seed = hashlib.sha256(b"stripe %d" % number).digest()
    return (seed * (size // len(seed) + 1))[:size]


def write(path: Path, sizes: list[int], *, complete: bool = True) -> SetWriter:
    writer = SetWriter(str(path), len(sizes), database="db", source="test", statement="BACKUP", tool="test")
    for stripe, size in zip(writer.stripes, sizes, strict=True):
        data = content(stripe.number, size)
        for at in range(0, size, 1 << 20):
            stripe.write(memoryview(data)[at : at + (1 << 20)])
        stripe.seal(complete=complete)
    return writer


def stored(path: Path, sizes: list[int] = (3 << 20, 1 << 20, 0)) -> StoredSet:
    write(path, list(sizes)).confirm(["done"])
    return StoredSet(str(path))


def manifest(path: Path) -> dict:
    return json.loads((path / "manifest.json").read_text())


def test_a_set_is_published_by_one_rename(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [100_000, 7])
    partial = tmp_path / "set.partial"
    assert not (tmp_path / "set").exists()
    assert manifest(partial)["state"] == "prepared" == writer.state
    assert writer.confirm(["all well"]) == str(tmp_path / "set")
    assert not partial.exists()
    found = manifest(tmp_path / "set")
    assert found["state"] == "confirmed"
    assert found["messages"] == ["all well"]
    assert [s["size"] for s in found["stripes"]] == [100_000, 7]
    assert [s["sha256"] for s in found["stripes"]] == [
        hashlib.sha256(content(1, 100_000)).hexdigest(), hashlib.sha256(content(2, 7)).hexdigest()]
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "manifest.json", "stripe-01-of-02.bak", "stripe-02-of-02.bak"]


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        stored(tmp_path / "set")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "set").iterdir()} == {0o600}


def test_the_manifest_follows_each_flush(tmp_path: Path) -> None:
    writer = SetWriter(str(tmp_path / "set"), 2)
    first, second = writer.stripes
    partial = tmp_path / "set.partial"
    assert manifest(partial)["state"] == "writing"
    first.write(b"abc")
    first.seal(complete=True)
    entry = manifest(partial)["stripes"][0]
    assert (entry["size"], entry["complete"]) == (3, True)
    assert entry["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert manifest(partial)["state"] == "writing"
    second.write(b"x")
    second.seal(complete=False)  # a Flush where a Complete is still to come
    assert manifest(partial)["state"] == "writing"
    second.seal(complete=True)
    assert manifest(partial)["state"] == "prepared"
    writer.fail("end of test")


def test_data_after_the_last_flush_take_the_promise_back_first(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [10, 10])
    assert manifest(tmp_path / "set.partial")["state"] == "prepared"
    writer.stripes[0].write(b"more")
    assert manifest(tmp_path / "set.partial")["state"] == "writing"
    with pytest.raises(StorageError, match="not every stripe is complete"):
        writer.confirm()
    assert not (tmp_path / "set").exists()


def test_a_second_flush_completes_it_again(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [10, 10])
    writer.stripes[0].write(b"more")
    writer.stripes[0].seal(complete=True)
    writer.confirm()
    found = StoredSet(str(tmp_path / "set"))
    found.verify()
    assert [s.size for s in found.manifest.stripes] == [14, 10]


@pytest.mark.parametrize("taken", ["set", "set.partial"])
def test_an_existing_name_is_refused(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(StorageError, match="exists"):
        SetWriter(str(tmp_path / "set"), 1)
    assert [p.name for p in tmp_path.iterdir()] == [taken]


def test_a_name_taken_meanwhile_leaves_the_set_prepared(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [10])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "foreign").touch()
    with pytest.raises(StorageError, match="stays in"):
        writer.confirm()
    found = StoredSet(str(tmp_path / "set.partial"))
    assert found.state == "prepared"
    found.verify()


@pytest.mark.parametrize(
    ("path", "message"), [("", "names no set"), ("x/", "names no set"), ("nowhere/set", "no such directory"),
                          ("set.partial", "unfinished")])
def test_impossible_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=message):
        SetWriter(path, 1)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="bytes free, the backup needs about"):
        SetWriter(str(tmp_path / "set"), 1, expected_size=1 << 60)
    assert list(tmp_path.iterdir()) == []
    require_space(str(tmp_path), 1)


def test_failure_removes_the_set(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [10, 10])
    writer.fail("the statement failed")
    assert list(tmp_path.iterdir()) == []


def test_failure_spares_what_it_did_not_make(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [10])
    (tmp_path / "set.partial" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="remove it by hand"):
        writer.fail("the statement failed")
    assert [p.name for p in (tmp_path / "set.partial").iterdir()] == ["notes.txt"]


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[: max(1, len(data) // 3)]))
    found = stored(tmp_path / "set", [100_000])
    monkeypatch.undo()
    found.verify()
    assert (tmp_path / "set" / "stripe-01-of-01.bak").read_bytes() == content(1, 100_000)


def test_a_failed_fsync_is_never_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SetWriter(str(tmp_path / "set"), 1)
    stripe = writer.stripes[0]
    stripe.write(b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
        with pytest.raises(OSError, match="Input/output error"):
            stripe.seal(complete=True)
    with pytest.raises(OSError, match="stripe 1: Input/output error"):
        stripe.seal(complete=True)
    with pytest.raises(OSError, match="stripe 1: Input/output error"):
        stripe.write(b"abc")
    assert manifest(tmp_path / "set.partial")["state"] == "writing"
    writer.fail("end of test")


def test_a_file_size_limit_is_a_storage_failure(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = SetWriter(str(tmp_path / "set"), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.stripes[0].write(bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    writer.fail("full")
    assert list(tmp_path.iterdir()) == []


def read(found: StoredSet, number: int, size: int) -> bytes:
    out, buffer = b"", bytearray(size)
    with found.open_stripe(number) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return out


@pytest.mark.parametrize("size", [1, 4096, 1 << 20, 1 << 23])
def test_stripes_read_back_as_written(tmp_path: Path, size: int) -> None:
    found = stored(tmp_path / "set", [100_001, 65_536, 0])
    step = max(size, 1000)
    assert [read(found, n, step) for n in (1, 2, 3)] == [content(1, 100_001), content(2, 65_536), b""]


DAMAGES = {
    "a flipped bit at the start": (lambda p: flip(p, 0), "is damaged"),
    "a flipped bit at the end": (lambda p: flip(p, -1), "is damaged"),
    "truncation": (lambda p: os.truncate(p, p.stat().st_size - 1), "is truncated"),
    "an extra byte": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "is too long"),
    "absence": (lambda p: p.unlink(), "is missing"),
    "a symbolic link": (lambda p: (p.rename(p.with_suffix(".old")), p.symlink_to(p.with_suffix(".old"))),
                        "no regular file"),
}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("number", [1, 2])
def test_damage_is_found_and_its_stripe_named(tmp_path: Path, kind: str, number: int) -> None:
    found = stored(tmp_path / "set", [2 << 20, 3 << 20])
    damage, words = DAMAGES[kind]
    damage(tmp_path / "set" / f"stripe-{number:02}-of-02.bak")
    with pytest.raises(VerificationError, match=f"stripe {number} of 2 .*{words}") as caught:
        found.verify()
    assert len(caught.value.problems) == 1


def test_the_last_bytes_are_withheld_from_a_damaged_stripe(tmp_path: Path) -> None:
    found = stored(tmp_path / "set", [10_000])
    flip(tmp_path / "set" / "stripe-01-of-01.bak", 17)
    with found.open_stripe(1) as reader:
        assert reader.readinto(bytearray(9_999)) == 9_999
        with pytest.raises(VerificationError, match="damaged"):
            reader.readinto(bytearray(9_999))


def test_the_rest_of_a_stripe_counts_too(tmp_path: Path) -> None:
    found = stored(tmp_path / "set", [10_000])
    flip(tmp_path / "set" / "stripe-01-of-01.bak", -1)
    with found.open_stripe(1) as reader:
        reader.readinto(bytearray(100))
        with pytest.raises(VerificationError, match="damaged"):
            reader.finish()


def test_a_file_that_shrinks_while_read(tmp_path: Path) -> None:
    found = stored(tmp_path / "set", [10_000])
    with found.open_stripe(1) as reader:
        reader.readinto(bytearray(100))
        os.truncate(tmp_path / "set" / "stripe-01-of-01.bak", 500)
        with pytest.raises(VerificationError, match="ends after 500 of 10,000 bytes"):
            reader.readinto(bytearray(5000))


def test_swapped_stripes_are_recognised(tmp_path: Path) -> None:
    found = stored(tmp_path / "set", [5000, 5000])
    one, two = (tmp_path / "set" / f"stripe-0{n}-of-02.bak" for n in (1, 2))
    one.rename(tmp_path / "other")
    two.rename(one)
    (tmp_path / "other").rename(two)
    with pytest.raises(VerificationError) as caught:
        found.verify()
    assert "stripe 1 of 2" in caught.value.problems[0] and "holds stripe 2" in caught.value.problems[0]
    assert "stripe 2 of 2" in caught.value.problems[1] and "holds stripe 1" in caught.value.problems[1]


def test_a_foreign_stripe_is_named(tmp_path: Path) -> None:
    found = stored(tmp_path / "set", [5000])
    (tmp_path / "set" / "stripe-02-of-02.bak").write_bytes(b"x")
    with pytest.raises(VerificationError, match=r"stripe-02-of-02.bak is no stripe of this set of 1"):
        found.check_presence()


MANIFESTS = {
    "no JSON": lambda m: "{",
    "no object": lambda m: "[]",
    "other format": lambda m: {**m, "format": "x"},
    "later version": lambda m: {**m, "version": 2},
    "missing field": lambda m: {k: v for k, v in m.items() if k != "tool"},
    "unknown field": lambda m: {**m, "x": 1},
    "unknown state": lambda m: {**m, "state": "fine"},
    "state of wrong type": lambda m: {**m, "state": ["confirmed"]},
    "no stripes": lambda m: {**m, "stripes": []},
    "stripes of wrong type": lambda m: {**m, "stripes": {}},
    "negative size": lambda m: {**m, "stripes": [{**m["stripes"][0], "size": -1}]},
    "a bool for a size": lambda m: {**m, "stripes": [{**m["stripes"][0], "size": True}]},
    "a float for a size": lambda m: {**m, "stripes": [{**m["stripes"][0], "size": 1e300}]},
    "a path out of the set": lambda m: {**m, "stripes": [{**m["stripes"][0], "file": "../../etc/passwd"}]},
    "a file name of wrong type": lambda m: {**m, "stripes": [{**m["stripes"][0], "file": 7}]},
    "a short digest": lambda m: {**m, "stripes": [{**m["stripes"][0], "sha256": "00"}]},
    "an incomplete stripe": lambda m: {**m, "stripes": [{**m["stripes"][0], "complete": False}]},
    "numbers out of order": lambda m: {**m, "stripes": [{**m["stripes"][0], "number": 2}]},
    "65 stripes": lambda m: {**m, "stripes": [{**m["stripes"][0], "number": n} for n in range(1, 66)]},
    "deep nesting": lambda m: "[" * 100_000,
    "bytes that are no text": lambda m: b"\xff\xfe\x00",
    "far too large": lambda m: b" " * (5 << 20),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_is_believed_only_when_whole(tmp_path: Path, kind: str) -> None:
    stored(tmp_path / "set", [5000])
    path = tmp_path / "set" / "manifest.json"
    changed = MANIFESTS[kind](json.loads(path.read_text()))
    if isinstance(changed, dict):
        changed = json.dumps(changed)
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(VerificationError, match=r"manifest.json"):
        StoredSet(str(tmp_path / "set"))


def test_a_manifest_survives_its_own_text() -> None:
    writer = Manifest("writing", [])
    assert json.loads(writer.to_json())["format"] == "vdi-ext backup set"


def test_no_set(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such backup set"):
        StoredSet(str(tmp_path / "set"))
    write(tmp_path / "set", [10]).leave()
    with pytest.raises(StorageError, match="outcome is not known"):
        StoredSet(str(tmp_path / "set"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="has no manifest.json"):
        StoredSet(str(tmp_path / "empty"))


def test_a_prepared_set_is_restorable_and_one_being_written_is_not(tmp_path: Path) -> None:
    write(tmp_path / "a", [10]).leave()
    StoredSet(str(tmp_path / "a.partial")).verify()
    write(tmp_path / "b", [10], complete=False).leave()
    found = StoredSet(str(tmp_path / "b.partial"))
    assert (found.state, found.restorable) == ("writing", False)
    with pytest.raises(StorageError, match="cannot be restored"):
        found.verify()


def test_a_confirmed_manifest_under_an_unfinished_name_is_only_prepared(tmp_path: Path) -> None:
    stored(tmp_path / "set", [10])
    (tmp_path / "set").rename(tmp_path / "set.partial")
    assert StoredSet(str(tmp_path / "set.partial")).state == "prepared"


def states(found: list) -> dict[str, str]:
    return {Path(entry.path).name: entry.state for entry in found}


def litter(directory: Path) -> None:
    """One set of every kind that an interrupted job can leave."""
    write(directory / "whole", [10, 20]).leave()
    write(directory / "half", [10, 20], complete=False).leave()
    write(directory / "hurt", [10, 20]).leave()
    (directory / "begun.partial").mkdir()
    write(directory / "odd", [10]).leave()
    (directory / "odd.partial" / "manifest.json").write_text("{")
    stored(directory / "fine", [10])
    flip(directory / "hurt.partial" / "stripe-02-of-02.bak", 3)


def test_recover_lists(tmp_path: Path) -> None:
    litter(tmp_path)
    expected = {"begun.partial": "writing", "half.partial": "writing", "hurt.partial": "prepared",
                "odd.partial": "damaged", "whole.partial": "prepared"}
    assert states(recover(str(tmp_path))) == expected
    assert states(recover(str(tmp_path))) == expected


def test_recover_verifies(tmp_path: Path) -> None:
    litter(tmp_path)
    found = {Path(entry.path).name: entry for entry in recover(str(tmp_path), action="verify")}
    assert found["whole.partial"].state == "verified"
    assert found["hurt.partial"].state == "prepared"
    assert "stripe 2 of 2" in found["hurt.partial"].problems[0]


def test_recover_publishes_what_verifies(tmp_path: Path) -> None:
    litter(tmp_path)
    found = states(recover(str(tmp_path), action="publish"))
    assert found["whole"] == "published"
    assert found["hurt.partial"] == "prepared"
    StoredSet(str(tmp_path / "whole")).verify()
    assert StoredSet(str(tmp_path / "whole")).state == "confirmed"
    assert (tmp_path / "hurt.partial").exists()


def test_recover_never_overwrites(tmp_path: Path) -> None:
    write(tmp_path / "set", [10]).leave()
    (tmp_path / "set").mkdir()
    with pytest.raises(StorageError, match="exists"):
        recover(str(tmp_path / "set"), action="publish")
    assert (tmp_path / "set.partial").exists()


def test_recover_removes_only_what_is_no_backup(tmp_path: Path) -> None:
    litter(tmp_path)
    found = states(recover(str(tmp_path), action="remove"))
    assert found == {"begun.partial": "removed", "half.partial": "removed", "hurt.partial": "prepared",
                     "odd.partial": "damaged", "whole.partial": "prepared"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fine", "hurt.partial", "odd.partial", "whole.partial"]


@pytest.mark.parametrize("name", ["whole", "whole.partial", "hurt", "odd.partial"])
def test_recover_removes_a_set_that_is_named(tmp_path: Path, name: str) -> None:
    litter(tmp_path)
    assert [entry.state for entry in recover(str(tmp_path / name), action="remove")] == ["removed"]
    assert not (tmp_path / (name.removesuffix(".partial") + ".partial")).exists()


def test_recover_keeps_its_hands_off_a_running_job(tmp_path: Path) -> None:
    writer = write(tmp_path / "set", [10])
    for action in ("list", "publish", "remove"):
        assert states(recover(str(tmp_path), action=action)) == {"set.partial": "in use"}
    writer.confirm()
    StoredSet(str(tmp_path / "set")).verify()


def test_a_set_is_not_removed_under_its_reader(tmp_path: Path) -> None:
    write(tmp_path / "set", [10]).leave()
    with StoredSet(str(tmp_path / "set.partial")).open_stripe(1):
        assert states(recover(str(tmp_path / "set"), action="remove")) == {"set.partial": "in use"}
    with exclusive(str(tmp_path / "set.partial")), pytest.raises(SetInUseError):
        StoredSet(str(tmp_path / "set.partial")).open_stripe(1)


def test_recover_where_nothing_is(tmp_path: Path) -> None:
    assert recover(str(tmp_path)) == []
    with pytest.raises(StorageError):
        recover(str(tmp_path / "nowhere"))
    with pytest.raises(StorageError):
        recover(str(tmp_path / "nowhere.partial"))
    with pytest.raises(ValueError, match="action"):
        recover(str(tmp_path), action="burn")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from vdi_ext import storage
from vdi_ext.storage import SetWriter
calls = 0
at = int(sys.argv[2])
def counted(name):
    real = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("write", "fsync", "rename", "mkdir", "open", "close"):
    setattr(os, name, counted(name))
writer = SetWriter(sys.argv[1], 2)
for stripe in writer.stripes:
    stripe.write(b"abc" * 1000)
    stripe.seal(complete=False)
for stripe in writer.stripes:
    stripe.write(b"abc")
    stripe.seal(complete=True)
writer.confirm()
print(calls)
"""


def test_a_writer_killed_at_any_call_leaves_nothing_that_looks_finished_and_is_not(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent))
    total = int(subprocess.run([sys.executable, "-c", script, str(tmp_path / "all"), "0"], check=True,
                               capture_output=True, timeout=60).stdout)
    assert total > 40
    seen = set()
    for at in range(1, total + 1):
        directory = tmp_path / f"{at}"
        directory.mkdir()
        run = subprocess.run([sys.executable, "-c", script, str(directory / "set"), str(at)], capture_output=True,
                             timeout=60)
        assert run.returncode == -signal.SIGKILL, run.stderr
        if (directory / "set").exists():
            found = StoredSet(str(directory / "set"))
            assert found.state == "confirmed"
            found.verify()
            seen.add("confirmed")
        for entry in recover(str(directory), action="verify"):
            assert entry.state in ("verified", "writing"), entry
            seen.add(entry.state)
        for entry in recover(str(directory), action="remove"):
            assert entry.state in ("removed", "prepared")
    assert seen == {"confirmed", "verified", "writing"}
