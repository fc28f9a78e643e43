"""Storage that the nodes do not share."""

import pytest


@pytest.mark.parametrize(
    ("script", "given"), [("train.py", ("--workers", "2")), ("sweep_sfm.py", ("--trials", "2"))]
)
def test_workspace_that_only_one_node_sees_is_refused_before_a_run_begins(hosts, options, script, given):
    ended = hosts.run(hosts.first, script, *options, *given)
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"workspace {hosts.disk / 'runs'} is not shared by the nodes of the Ray cluster: second" in line
    assert "--workspace" in line
    assert "s3://bucket/runs" in line
    files = [*hosts.first.files("runs"), *hosts.second.files("runs")]
    assert not [file for file in files if file.endswith(("journal.jsonl", "mlflow.db")) or ".probe" in file]
