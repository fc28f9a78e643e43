"""On a disk without the system's locks, as some network disks are, there is still one writer at a time."""

import errno
import fcntl

import pytest
from pyarrow import fs

from cluster.cluster_state import ClusterError
from cluster.local_cluster import LocalCluster
from data_catalog.storage.claims import CLAIM
from data_catalog.storage.filesystems import file_digest
from data_catalog.storage.local_copies import FOLDER_VARIABLE, local_copy
from data_catalog.synthetic import SyntheticSettings, synthesize
from experiments.run.run_folder import RunFolder
from experiments.studies.study_folder import StudyFolder


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    def refuse(file, operation):
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


def people(folder):
    settings = SyntheticSettings(
        height=32,
        width=16,
        train_identities=2,
        validation_identities=1,
        test_identities=1,
        cameras=2,
        shots=1,
    )
    return synthesize(settings, folder / "people")


@pytest.mark.parametrize("kind", [RunFolder, StudyFolder])
def test_runs_and_studies_have_one_writer(no_locks, tmp_path, kind):
    folder = kind(tmp_path / "r")
    with folder.claimed(RuntimeError("busy")):
        folder.journal.append("started")
        assert any(name.startswith(CLAIM) for name in folder.list_files())
        with pytest.raises(RuntimeError, match="busy"), kind(tmp_path / "r").claimed(RuntimeError("busy")):
            pass
    assert [event["event"] for event in folder.journal.read()] == ["started"]
    assert not any(name.startswith(CLAIM) for name in folder.list_files())


def test_benchmark_is_drawn_once(no_locks, tmp_path):
    assert not people(tmp_path).reused
    assert people(tmp_path).reused


def test_remote_shard_is_copied_once(no_locks, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    source = tmp_path / "shard.arrow"
    source.write_bytes(b"rows")
    local = fs.LocalFileSystem()
    copies = {local_copy(local, str(source), file_digest(local, str(source))) for _ in range(2)}
    assert [copy.read_bytes() for copy in copies] == [b"rows"]


def test_cluster_on_such_a_disk_is_refused_in_one_line(no_locks, tmp_path):
    cluster = LocalCluster(tmp_path)
    cluster.folder.mkdir(parents=True)
    with pytest.raises(ClusterError, match=r"cannot be locked \(.*\); name a folder on a disk"):
        cluster.down()
