import os
from pathlib import Path

import pytest

from stmi import processors
from stmi.processors import usable_processors


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of eight processors, whose control groups are files of the test."""
    groups = tmp_path / "cgroup"
    groups.mkdir()
    own = tmp_path / "self"
    monkeypatch.setattr(processors, "CGROUPS", groups)
    monkeypatch.setattr(processors, "OWN_GROUPS", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    def write(own_groups: str, files: dict[str, str]) -> None:
        own.write_text(own_groups)
        for name, text in files.items():
            (groups / name).parent.mkdir(parents=True, exist_ok=True)
            (groups / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param("0::/\n", {}, 8, id="no limit"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 8, id="version 2, no limit"),
        pytest.param("0::/\n", {"cpu.max": "200000 100000\n"}, 2, id="version 2"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="less than one"),
        pytest.param("0::/\n", {"cpu.max": "1600000 100000\n"}, 8, id="more than there are"),
        pytest.param(
            "0::/jobs/job7\n",
            {"jobs/cpu.max": "300000 100000\n", "jobs/job7/cpu.max": "600000 100000\n"},
            3,
            id="the group around it has less",
        ),
        pytest.param("0::/of/the/host\n", {"cpu.max": "400000 100000\n"}, 4, id="path of the host"),
        pytest.param(
            "4:memory:/a\n3:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2,
            id="version 1",
        ),
        pytest.param(
            "3:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
            id="version 1, no limit",
        ),
    ],
)
def test_the_quota_of_a_container_limits_the_processors(machine, own, files, expected):
    machine(own, files)
    assert usable_processors() == expected


def test_affinity_limits_the_processors(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert usable_processors() == 2


def test_a_system_without_affinity_and_control_groups_has_its_processors(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_processors() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors() == 1


def test_no_other_file_asks_for_processors():
    """One function knows of affinity and quotas."""
    root = Path(__file__).parents[2]
    asked = ("sched_getaffinity", "cpu_count", "process_cpu_count")
    found = [
        path.relative_to(root).as_posix()
        for room in ("stmi", "data_catalog", "experiments", "cluster")
        for path in (root / room).rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in asked)
    ]
    assert found == ["stmi/processors.py"]
