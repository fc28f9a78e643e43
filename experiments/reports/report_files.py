"""The files of a study's report, as `report.py --study` prints them."""

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
