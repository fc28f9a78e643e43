"""What `report.py` prints for a study, and for a workspace that it sends to MLflow again."""

from typing import Literal

from data_catalog.records import Record
from experiments.tracking.mlflow_store import MlflowRun


class StudyReport(Record):
    """The files of a study's report."""

    study: str
    """Name of the study."""
    kind: Literal["ablation", "sweep"]
    page: str
    """Path of the HTML page."""
    markdown: str
    """Path of the Markdown."""
    pictures: tuple[str, ...]
    """Paths, in the order of the page."""
    missing: dict[str, str]
    """Title of a section to the reason why it has no pictures."""
    mlflow: MlflowRun
    """The parent run of the study."""


class LoggedAgain(Record):
    """What `report.py --mlflow-again` has sent."""

    workspace: str
    """Path or URI."""
    tracking_uri: str
    """Where it was sent, without user name and password."""
    runs: tuple[str, ...]
    """Runs of no study that MLflow has now."""
    studies: dict[str, int]
    """Study that MLflow has now, to the number of its children there."""
    wrong: dict[str, str]
    """Run or study to the reason why MLflow lacks it, or a part of it."""
