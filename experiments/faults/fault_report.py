"""Each fault tried on a run of its own: what was lost, and how soon training went on."""

import math
import random
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from data_catalog.errors import CatalogError
from data_catalog.records import Record
from data_catalog.storage.folders import Folder
from experiments.evaluating.run_differences import find_differences
from experiments.faults.cluster_nodes import ClusterNodes
from experiments.faults.faults import FAULTS, Disturbed, NotTriedError, Plan, Scene
from experiments.faults.training_process import EndedError, TrainingProcess
from experiments.run.run_folder import RunFolder, RunFolderError
from experiments.run.run_result import FailedRunError

TOLERANCE = 0.02
"""How much losses and metrics may differ, relatively, where equal bits are not promised."""


class FaultOutcome(Record):
    """What a fault did to a run."""

    fault: str
    what: str
    """What happened to the run."""
    not_tried: str | None = None
    """Why it could not be produced; None where it was."""
    lost: tuple[str, ...] = ()
    """One line each: what the run lacks, or has otherwise than the undisturbed one."""
    seconds_until_training: tuple[float, ...] = ()
    """Of each time it came; empty where training does not stop, or must not go on."""
    equal_weights: bool | None = None
    """Whether the final weights are those of the undisturbed run, to the last bit; None without any."""
    starts: int = 0
    """How often the command was given."""
    kept: str | None = None
    """Where the run is, if something was lost; otherwise it is deleted."""


class FaultReport(Record):
    """The faults that were asked for."""

    undisturbed: str
    """Name of the run with which the disturbed ones are compared."""
    workers: int
    steps: int
    is_exact: bool
    """Whether equal bits are promised: they are not with GPUs, nor where the number of workers changes."""
    outcomes: tuple[FaultOutcome, ...]

    @property
    def has_lost(self) -> bool:
        """Whether anything was lost."""
        return any(outcome.lost for outcome in self.outcomes)


def try_faults(
    names: Sequence[str],
    plan: Plan,
    on_fault: Callable[[str], None],
    on_outcome: Callable[[FaultOutcome], None] = lambda outcome: None,
) -> FaultReport:
    """Try faults, each on a run of its own, and hold it against an undisturbed one.

    The undisturbed run stays in the workspace, where the next call finds it.

    Args:
        names: Names of `FAULTS`.
        plan: How.
        on_fault: Called with the name of each run before it is trained.
        on_outcome: Called with each outcome.

    Raises:
        FailedRunError: The undisturbed run fails.
        CatalogError: No cluster answers at `RAY_ADDRESS`.
    """
    nodes, moments = ClusterNodes(), random.Random(plan.seed)
    scratch = plan.workspace / f"chaos-{uuid.uuid4().hex[:8]}"
    options = [*plan.options, "--catalog", plan.catalog]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="stmi-chaos-") as name:
        folder = Path(name)
        on_fault("undisturbed")
        undisturbed = _train_undisturbed(options, plan.workspace, folder)
        is_exact = (plan.on_cpus or not nodes.has_gpus) and not plan.is_elastic
        for fault in names:
            on_fault(fault)
            (own_folder := folder / fault).mkdir()
            own = [option.format(folder=own_folder) for option in FAULTS[fault].options]
            tracking = ["--tracking-uri", f"sqlite:///{folder / 'mlflow.db'}"]
            scene = Scene(plan, undisturbed, nodes, moments, own_folder)
            with TrainingProcess(
                [*options, *own, *tracking], scratch / fault, folder / f"{fault}.log", plan.most_seconds
            ) as training:
                outcome = _try(fault, scene, training, is_exact)
            if not outcome.lost:
                training.workspace.delete()
            outcomes.append(outcome)
            on_outcome(outcome)
    if not any(outcome.lost for outcome in outcomes):
        scratch.delete()
    return FaultReport(
        undisturbed=undisturbed.name,
        workers=undisturbed.config.train.workers,
        steps=undisturbed.journal.epochs()[-1]["step"],
        is_exact=is_exact,
        outcomes=tuple(outcomes),
    )


def _train_undisturbed(options: Sequence[str], workspace: Folder, folder: Path) -> RunFolder:
    with TrainingProcess(options, workspace, folder / "undisturbed.log", math.inf) as training:
        training.start()
        try:
            return training.finish()
        except EndedError as error:
            raise FailedRunError(f"without any fault, {error}") from None


def _try(name: str, scene: Scene, training: TrainingProcess, is_exact: bool) -> FaultOutcome:
    fault = FAULTS[name]
    disturbed, is_equal = Disturbed(), None
    try:
        disturbed = fault.disturb(scene, training)
        lost = disturbed.lost
        if disturbed.goes_on and training.run is not None:
            is_equal, differences = _compare(
                training.run, disturbed.expected or scene.undisturbed, 0.0 if is_exact else TOLERANCE
            )
            lost += differences
    except NotTriedError as error:
        return FaultOutcome(fault=name, what=fault.what, not_tried=str(error))
    except (EndedError, CatalogError, RunFolderError) as error:
        lost = (*disturbed.lost, str(error))
    except Exception as error:
        # Such as a worker that was replaced before it could be killed: the others are tried all the same.
        lost = (*disturbed.lost, f"it could not be tried to its end ({type(error).__name__}: {error})")
    return FaultOutcome(
        fault=name,
        what=fault.what,
        lost=lost,
        seconds_until_training=tuple(round(seconds, 1) for seconds in disturbed.seconds),
        equal_weights=is_equal,
        starts=training.starts,
        kept=training.workspace.location if lost else None,
    )


def _compare(run: RunFolder, undisturbed: RunFolder, tolerance: float) -> tuple[bool, tuple[str, ...]]:
    """Whether two runs ended with the same weights, and all in which they differ by more than a tolerance."""
    ours, theirs = (one.journal.find("test")["weights"] for one in (run, undisturbed))
    return ours == theirs, find_differences(run, undisturbed, tolerance)
