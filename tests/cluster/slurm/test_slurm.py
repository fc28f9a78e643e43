"""Jobs on a real Slurm of two hosts (`slurm_cluster`): one scenario, in which two jobs share the nodes."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from cluster.slurm import render
from tests import tiny_clip
from tests.cluster.slurm.slurm_cluster import SlurmCluster, missing_requirement
from tests.experiments import small_run
from tests.tolerances import ROUNDING_FLOAT32

ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED", "OUT_OF_MEMORY")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_requirement() is not None, reason=f"no Slurm: {missing_requirement()}"),
]


@pytest.fixture(scope="module")
def folder():
    """A folder that both hosts see; their `/tmp` is their own."""
    path = Path(tempfile.mkdtemp(prefix="stmi-slurm-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def slurm(folder):
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def training(folder):
    """Arguments of a training of seconds whose tables are there, and the run of one process."""
    (folder / "clip").mkdir()
    clip = tiny_clip.write(folder / "clip")
    alone = small_run.alone(clip, folder / "runs", "train.epochs=6", runs=folder / "alone")
    options = [*small_run.options(clip, without="train.epochs"), "--set", "train.epochs=6"]
    return [*options, "--workspace", str(folder / "runs"), "--json"], alone


def submit(slurm, *arguments):
    """Submit a job, one CPU of each node; returns its number."""
    script = slurm.folder / "job.sh"
    assert render.main(["--cpus-per-node", "1", "--out", str(script), *arguments]) == 0
    return slurm.run("sbatch", "--parsable", str(script)).strip()


def journal(slurm):
    lines = [line for file in slurm.folder.glob("runs/train/*/journal.jsonl") for line in file.open()]
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.fixture(scope="module")
def jobs(slurm, training):
    """A training over both nodes that was warned of its time limit, and a job beside it that failed."""
    arguments, _ = training
    job = submit(slurm, "--nodes", "2", "--", "experiments/train.py", *arguments, "--workers", "2")
    failing = submit(slurm, "--", "experiments/evaluate.py", "--run", str(slurm.folder / "none"))
    slurm.wait(failing, *ENDED, seconds=240)
    slurm.wait_until(lambda: any(event["event"] == "epoch" for event in journal(slurm)), seconds=240)
    workers = slurm.processes("RayTrainWorker")
    # What Slurm sends so many seconds before the time limit.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job, *ENDED, seconds=400)
    return job, failing, workers


def test_job_over_both_nodes_that_reaches_its_limit_goes_on_by_itself(jobs, slurm, training):
    job, _, workers = jobs
    assert workers == {"h1": 1, "h2": 1}
    assert slurm.state(job) == "COMPLETED", slurm.logs()
    events = [event["event"] for event in journal(slurm)]
    assert events.count("resumed") == 1
    output = (slurm.folder / f"train-{job}.log").read_text()
    assert "the job goes back into the queue" in output
    result = json.loads(output[output.rindex("\n{\n") :].partition("\n}\n")[0] + "\n}")
    expected = json.loads(training[1].finished_result.to_json())
    for losses, alone in zip(result["losses"], expected["losses"], strict=True):
        assert losses == pytest.approx(alone, rel=0, abs=ROUNDING_FLOAT32)


def test_job_whose_script_fails_is_failed_and_disturbs_no_other(jobs, slurm):
    _, failing, _ = jobs
    assert slurm.state(failing) == "FAILED"
    assert "ExitCode=2:0" in slurm.run("scontrol", "show", "job", failing)
    output = (slurm.folder / f"evaluate-{failing}.log").read_text()
    assert "is no run's folder" in output
    assert "worker_failed" not in [event["event"] for event in journal(slurm)]


def test_jobs_leave_nothing_on_their_nodes(jobs, slurm):
    slurm.wait_until(lambda: not sum(slurm.processes("raylet").values()), seconds=60)
    for host in ("h1", "h2"):
        assert not slurm.files(host, "/tmp/stmi-[0-9]*")
