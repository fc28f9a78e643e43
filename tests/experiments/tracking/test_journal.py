import json
import pickle
from pathlib import Path

import pytest

from data_catalog.errors import StorageAwayError
from data_catalog.storage.claims import CLAIM, LostClaimError
from data_catalog.storage.filesystems import open_root
from data_catalog.storage.folders import Folder
from experiments.run.workers.worker import JournalCallback
from experiments.tracking.journal import Journal
from experiments.tracking.journal_folder import JOURNAL, JournalFolder


@pytest.fixture(params=["disk", "object storage"])
def journal(request, tmp_path, object_storage) -> Journal:
    if request.param == "disk":
        return Journal(tmp_path / "journal.jsonl")
    return Journal((Folder(object_storage("journals")) / tmp_path.name).file("journal.jsonl"))


def test_journal_grows_with_every_event_and_another_reader_sees_each(journal):
    reader, sizes = Journal(journal.location), [journal.size]
    for epoch in (1, 2):
        journal.append("epoch", epoch=epoch)
        sizes.append(reader.size)
        assert [event["epoch"] for event in reader.read()] == list(range(1, epoch + 1))
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 0


def test_journal_on_a_disk_is_a_file_of_lines_that_is_only_added_to(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("epoch", epoch=1)
    with path.open() as follower:
        assert json.loads(follower.readline())["epoch"] == 1
        journal.append("epoch", epoch=2)
        assert json.loads(follower.readline())["epoch"] == 2


def test_events_come_back_in_order(journal):
    journal.append("started", resumed=False)
    journal.append("epoch", epoch=1, losses={"total": 2.0})
    assert [event["event"] for event in journal.read()] == ["started", "epoch"]
    assert journal.last("epoch")["losses"] == {"total": 2.0}
    assert journal.last("test") is None


def test_epoch_repeated_after_a_crash_counts_once(journal):
    for epoch, loss in ((1, 3.0), (2, 2.5), (2, 2.0)):
        journal.append("epoch", epoch=epoch, loss=loss)
    assert [(event["epoch"], event["loss"]) for event in journal.epochs()] == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("event", "facts", "left"),
    [
        ("started", {"epoch": 1}, [1]),
        ("started", {}, [1, 2, 3]),  # of an older version
        ("resumed", {"epoch": 2}, [1, 2]),
        ("restarted", {"epoch": 0}, []),
    ],
)
def test_epochs_after_the_one_that_training_went_back_to_count_when_they_are_repeated(
    journal, event, facts, left
):
    for epoch in (1, 2, 3):
        journal.append("epoch", epoch=epoch)
    journal.append(event, **facts)
    assert [epoch["epoch"] for epoch in journal.epochs()] == left
    journal.append("epoch", epoch=len(left) + 1)
    assert len(journal.epochs()) == min(len(left) + 1, 4)


def test_line_cut_off_by_a_crash_costs_only_itself(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("epoch", epoch=1)
    with Path(journal.location).open("a") as file:
        file.write('{"event": "epoch", "epo')
    journal.append("epoch", epoch=2)
    assert [event["epoch"] for event in journal.epochs()] == [1, 2]


def test_numbers_that_are_not_finite_are_refused(journal):
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append("epoch", loss=float("nan"))
    assert journal.read() == []


def test_epochs_that_a_crash_kept_from_the_journal_come_back_with_the_checkpoint(journal):
    journal.append("untrained", metrics={"mAP": 0.1})
    journal.append("epoch", epoch=1, losses={"total": 3.0})
    history = [
        {"event": "untrained", "metrics": {"mAP": 0.1}},
        {"event": "epoch", "epoch": 1, "losses": {"total": 3.0}},
        {"event": "epoch", "epoch": 2, "losses": {"total": 2.0}},
    ]
    report = {"event": "resumed", "epoch": 2, "history": history}
    JournalCallback(journal, None).after_report(None, [report], None)
    assert [(event["epoch"], event["losses"]["total"]) for event in journal.epochs()] == [(1, 3.0), (2, 2.0)]
    assert [event["event"] for event in journal.read()] == ["untrained", "epoch", "epoch", "resumed"]


def test_epoch_that_was_repeated_and_then_kept_from_the_journal_comes_back_too(journal):
    for epoch in (1, 2):
        journal.append("epoch", epoch=epoch)
    journal.append("resumed", epoch=1)
    # Epoch 2 was repeated, and its checkpoint stored; a second crash came before its report.
    report = {"event": "resumed", "epoch": 2, "history": [{"event": "epoch", "epoch": n} for n in (1, 2)]}
    JournalCallback(journal, None).after_report(None, [report], None)
    assert [event["epoch"] for event in journal.epochs()] == [1, 2]
    assert [event["event"] for event in journal.read()] == ["epoch", "epoch", "resumed", "epoch", "resumed"]


def test_writer_whose_claim_was_taken_over_writes_no_more(object_storage, tmp_path):
    folder = JournalFolder(Folder(object_storage("journals")) / tmp_path.name)
    with folder.claimed(RuntimeError("busy")):
        folder.journal.append("epoch", epoch=1)
        # The controller of Ray Train writes for the driver, which holds the claim.
        sent = pickle.loads(pickle.dumps(folder.journal))
        sent.append("epoch", epoch=2)
        (claim,) = (name for name in folder.list_files() if name.startswith(CLAIM))
        filesystem, path = open_root(folder.file(claim))
        filesystem.delete_file(path)
        for journal in (folder.journal, sent):
            with pytest.raises(LostClaimError):
                journal.append("epoch", epoch=3)
        with pytest.raises(LostClaimError):
            folder.write("result.json", "{}")
    assert [event["epoch"] for event in Journal(folder.journal.location).read()] == [1, 2]
    assert list(folder.list_files()) == [JOURNAL]


def test_writer_that_is_suspended_while_it_reads_leaves_the_journal_of_its_successor(
    object_storage, tmp_path, monkeypatch
):
    folder = JournalFolder(Folder(object_storage("journals")) / tmp_path.name)
    successor = Journal(folder.journal.location)
    with folder.claimed(RuntimeError("busy")):
        folder.journal.append("epoch", epoch=1)
        read = Journal._read

        def read_late(journal: Journal) -> bytes:
            before = read(journal)
            monkeypatch.undo()
            (claim,) = (name for name in folder.list_files() if name.startswith(CLAIM))
            filesystem, path = open_root(folder.file(claim))
            filesystem.delete_file(path)
            successor.append("resumed", epoch=1)
            return before

        monkeypatch.setattr(Journal, "_read", read_late)
        with pytest.raises(LostClaimError):
            folder.journal.append("epoch", epoch=2)
    assert [event["event"] for event in successor.read()] == ["epoch", "resumed"]


def test_worker_that_waited_for_storage_in_vain_ends_the_run_and_a_crash_does_not(tmp_path):
    callback = JournalCallback(Journal(tmp_path / "journal.jsonl"), None)
    callback.after_exception(None, {1: RuntimeError("a crash")})
    with pytest.raises(StorageAwayError):
        callback.after_exception(None, {0: RuntimeError("a crash"), 1: StorageAwayError("s3://lab")})
    assert [event["event"] for event in callback.journal.read()] == ["worker_failed"]
