"""The part of a study's result that every kind of study has."""

from abc import abstractmethod

from data_catalog.records import Record
from experiments.tracking.mlflow_store import MlflowRun


class StudyResult(Record):
    """The result of a study (`result.json` in its folder)."""

    study: str
    """The study's name."""
    kind: str
    recipe: str
    settings: tuple[str, ...]
    """Changes of every run, as `dotted.name=value`."""
    feature: str
    """The retrieval feature that is measured."""
    files: dict[str, str]
    """Name to path, of tables and figures."""
    mlflow: MlflowRun

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the study has all the runs that it was asked for."""
