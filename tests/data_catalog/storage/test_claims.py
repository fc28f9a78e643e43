"""The right to write, on disks with and without the operating system's locks, and in object storage."""

import errno
import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyarrow import fs

from data_catalog.errors import NotWritableError
from data_catalog.storage import claims, filesystems, object_stores, patience
from data_catalog.storage.claims import CLAIM, LOCK, ClaimedError, LostClaimError, claim, claim_unless
from data_catalog.storage.filesystems import join, list_files, open_root


@pytest.fixture(params=["disk", "disk without locks", "object storage"])
def root(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    object_storage: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A folder that does not exist yet."""
    if request.param == "object storage":
        return join(object_storage("claims"), tmp_path.name)
    if request.param == "disk without locks":
        refuse_locks(monkeypatch)
    return str(tmp_path / "folder")


def refuse_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as a shared disk does that was mounted without locks."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def never() -> bool:
    raise AssertionError("nobody else holds the right")


def test_claim_of_another_writer_is_an_error_for_who_does_not_wait(root: str) -> None:
    for _ in range(2):
        with (
            claim(root),
            pytest.raises(ClaimedError, match=r"is being written by another process"),
            claim(root),
        ):
            pass


def test_waiting_ends_when_the_caller_gives_up(root: str) -> None:
    asked = []

    def wait() -> bool:
        asked.append(1)
        return len(asked) < 3

    with claim(root), pytest.raises(ClaimedError), claim(root, wait=wait):
        pass
    assert len(asked) == 3


def test_who_waits_gets_the_right_when_it_is_released(root: str) -> None:
    has_waited, order = threading.Event(), list[str]()

    def wait() -> bool:
        has_waited.set()
        return True

    def second() -> None:
        with claim(root, wait=wait):
            order.append("second")

    with claim(root):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert has_waited.wait(timeout=10)
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]


def test_right_is_released_when_its_holder_fails(root: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), claim(root, wait=never):
            raise RuntimeError


def test_all_who_wait_go_on_as_soon_as_the_work_is_done(root: str) -> None:
    done, through = threading.Event(), []

    def wait() -> None:
        with claim_unless(root, done.is_set) as is_held:
            through.append((is_held, done.is_set()))

    with claim_unless(root, never) as is_held:
        assert is_held
        waiting = [threading.Thread(target=wait) for _ in range(16)]
        for thread in waiting:
            thread.start()
        time.sleep(1)
        assert through == []
        done.set()
        for thread in waiting:
            thread.join(timeout=10)
        # The first process still holds the right, but nobody needs it any more.
        assert through == [(False, True)] * 16


def test_of_many_who_want_the_right_one_has_it_at_a_time(root: str) -> None:
    inside, most = [], []

    def write() -> None:
        with claim(root, wait=lambda: True):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join(timeout=60)
    assert most == [1] * 4


def test_local_disk_has_one_lock_file_and_others_leave_nothing(root: str, tmp_path: Path) -> None:
    with claim(root):
        pass
    files = set(list_files(*open_root(root)))
    assert files <= {LOCK}
    assert not any(tmp_path.rglob(f"{CLAIM}*"))


def test_removal_of_a_claim_by_others_fails_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch)
    with claim(str(tmp_path)):
        [own] = tmp_path.glob(f"{CLAIM}*")
        own.unlink()
    with claim(str(tmp_path)):
        assert len(list(tmp_path.glob(f"{CLAIM}*"))) == 1


def test_claim_of_a_living_writer_holds_and_that_of_a_killed_one_expires(
    object_storage: Callable[[str], str],
) -> None:
    root, expiry_seconds = join(object_storage("claims"), "killed"), 3.0
    filesystem, folder = open_root(root)
    for name in (f"{CLAIM}dead", "shard-00001.parquet"):
        with filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(b"left")
    started = time.monotonic()
    # Even who does not wait for a living writer takes over from a dead one.
    with claim(root, expiry_seconds=expiry_seconds):
        assert expiry_seconds <= time.monotonic() - started < expiry_seconds + 6
        left = set(list_files(filesystem, folder))
        assert {name for name in left if not name.startswith(CLAIM)} == {"shard-00001.parquet"}
        second = threading.Event()

        def want() -> None:
            with claim(root, wait=lambda: True, expiry_seconds=expiry_seconds):
                second.set()

        wanting = threading.Thread(target=want)
        wanting.start()
        assert not second.wait(timeout=2 * expiry_seconds)
    wanting.join(timeout=10)
    assert second.is_set()


def test_claim_that_was_taken_over_is_said_to_be_lost_and_not_renewed(
    object_storage: Callable[[str], str],
) -> None:
    root, expiry_seconds = join(object_storage("claims"), "lost"), 1.2
    filesystem, folder = open_root(root)
    with claim(root, expiry_seconds=expiry_seconds) as held:
        held.check()
        [own] = list_files(filesystem, folder)
        # As a process does that has waited until the claim expired.
        filesystem.delete_file(f"{folder}/{own}")
        time.sleep(expiry_seconds / 2)
        with pytest.raises(LostClaimError, match=r"another process has taken over s3://lab/.*/claims/lost,"):
            held.check()
        assert not list_files(filesystem, folder)


def test_request_of_a_holder_that_lost_its_claim_in_an_outage_is_not_repeated(
    object_storage: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = join(object_storage("claims"), "outage")
    filesystem, folder = open_root(root)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_SECONDS", 0.02)
    with claim(root) as held:
        [own] = list_files(filesystem, folder)

        def fail(writer: object_stores._Writer) -> None:
            # Another process takes over meanwhile.
            filesystem.delete_file(f"{folder}/{own}")
            monkeypatch.undo()
            raise OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7")

        monkeypatch.setattr(object_stores._Writer, "_upload", fail)
        with pytest.raises(LostClaimError), held.guarding():
            filesystems.write_atomically(filesystem, f"{folder}/journal.jsonl", b"old")
    assert not list_files(filesystem, folder)


def test_claim_that_a_suspended_holder_brings_back_by_a_late_renewal_is_removed(
    object_storage: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, expiry_seconds = join(object_storage("claims"), "suspended"), 0.6
    written, write = threading.Event(), claims._write

    def write_late(filesystem: fs.FileSystem, path: str) -> None:
        monkeypatch.undo()
        # Another process takes over meanwhile.
        filesystem.delete_file(path)
        time.sleep(1.5 * expiry_seconds)
        write(filesystem, path)
        written.set()

    with claim(root, expiry_seconds=expiry_seconds) as held:
        monkeypatch.setattr(claims, "_write", write_late)
        assert written.wait(timeout=10)
        time.sleep(expiry_seconds)
        with pytest.raises(LostClaimError):
            held.check()


def test_lock_cannot_be_lost(tmp_path: Path) -> None:
    with claim(tmp_path) as held:
        (tmp_path / LOCK).unlink()
        held.check()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(NotWritableError, match=r"file/table cannot be written to \(Not a directory\)"),
        claim(tmp_path / "file" / "table"),
    ):
        pass


def test_time_in_which_the_storage_was_away_does_not_count_against_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = tmp_path / f"{CLAIM}another"
    claimed.touch()
    others = claims._OtherClaims(fs.LocalFileSystem(), str(tmp_path), "own", expiry_seconds=0.5)
    assert others.hold()

    def answer_late(filesystem: fs.FileSystem, folder: str) -> dict[str, int]:
        time.sleep(0.7)
        return list_files(filesystem, folder)

    with monkeypatch.context() as patched:
        patched.setattr(filesystems, "list_files", answer_late)
        assert others.hold()
    assert claimed.exists()
    time.sleep(0.6)
    assert not others.hold()
    assert not claimed.exists()
