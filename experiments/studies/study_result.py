"""The part of a study's result that every kind of study has."""

from abc import abstractmethod
from typing import Self

from data_catalog.records import Record
from data_catalog.storage.folders import Folder
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
    """Name to path or URI, of tables and figures; in the stored result, their names in the study's folder."""
    mlflow: MlflowRun

    def located(self, folder: Folder) -> Self:
        """The same with the paths of its files and of MLflow, which are stored without the workspace's.

        Older versions stored absolute paths, which hold no longer where the workspace was moved.
        """
        files = {name: folder.file(at.rpartition("/")[2]) for name, at in self.files.items()}
        return self.model_copy(update={"files": files, "mlflow": self.mlflow.located(folder)})

    def portable(self, folder: Folder) -> Self:
        """The same as it is stored in the study's folder."""
        return self.model_copy(update={"mlflow": self.mlflow.portable(folder)})

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the study has all the runs that it was asked for."""
