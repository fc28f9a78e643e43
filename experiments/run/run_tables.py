"""The tables that a run reads.

In a run on several data sets those of the first one are named as in a run on one, `view/train`, and its views
`train`; those of each other one like `view/train/msvr310` and `train/msvr310`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from data_catalog.checks.findings import Finding
from data_catalog.tables.table import Table
from data_catalog.views.view_reader import View, open_view
from experiments.experiment_config import DataConfig
from experiments.run.run_result import InitialFacts
from stmi.retrieval.metrics import JunkRule

if TYPE_CHECKING:
    from torch import Tensor

Found = TypeVar("Found")
_NAME = re.compile(r"(view/[^/]+|[^/]+)(?:/([^/]+))?")

OnStep = Callable[[str, str], None]
"""Called with the name of a finished step that makes a table, and its result in words."""


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run begins with.

    Attributes:
        weights: By name; the model has others, too.
        facts: Where they come from.
    """

    weights: "dict[str, Tensor]"
    facts: InitialFacts


@dataclass(frozen=True)
class RunTables:
    """What a run reads.

    Attributes:
        views: Split name to training view; `train` and `test` always, `val` where the data set has one.
        captions: What the text features of the views were made from, by data set; empty where the views hold
            no text.
        digests: Table name to digest, of these and of all that they were made from.
        warnings: What the checks of the data warn of.
        initial: The weights that it begins with; None for those of CLIP alone.
    """

    views: dict[str, Table]
    captions: dict[str, Table]
    digests: dict[str, str]
    warnings: tuple[Finding, ...] = ()
    initial: InitialWeights | None = None

    @property
    def catalog(self) -> str | None:
        """Where the views are; None where there are none."""
        return next((view.catalog for view in self.views.values()), None)


def join_names(by_dataset: Mapping[str, Mapping[str, Found]]) -> dict[str, Found]:
    """The tables of all data sets by name.

    Args:
        by_dataset: Data set to tables by name, as a run on it alone has them; the first data set first.
    """
    first = next(iter(by_dataset))
    return {
        name if dataset == first else f"{name}/{dataset}": table
        for dataset, tables in by_dataset.items()
        for name, table in tables.items()
    }


def split_names(tables: Mapping[str, Found], datasets: Iterable[str]) -> dict[str, dict[str, Found]]:
    """The tables of each data set by name; undoes `join_names`.

    Args:
        tables: By name; or views.
        datasets: Names of the data sets, the first one first.
    """
    first, *others = datasets
    parts: dict[str, dict[str, Found]] = {name: {} for name in (first, *others)}
    for name, table in tables.items():
        own, dataset = split_name(name)
        parts[dataset or first][own] = table
    return parts


def split_name(name: str) -> tuple[str, str | None]:
    """The name of a table or a view in a run on its data set alone, and the data set; None for the first."""
    found = _NAME.fullmatch(name)
    assert found is not None
    own, dataset = found.groups()
    return own, dataset


def training_views(views: Mapping[str, Table], datasets: Iterable[str]) -> list[Table]:
    """The training view of each data set; the arguments are those of `split_names`."""
    return [own["train"] for own in split_names(views, datasets).values()]


def number_cameras(views: Mapping[str, Table], datasets: Iterable[str]) -> dict[str, range]:
    """By data set the numbers that a model has for its cameras, from the data set's camera 0 on.

    Args:
        views: All views of a run.
        datasets: As in `split_names`.
    """
    numbers, first = {}, 0
    for name, own in split_names(views, datasets).items():
        count = max(1, *(1 + max(view.statistics["cameras"]) for view in own.values()))
        numbers[name] = range(first, first + count)
        first += count
    return numbers


def count_cameras(views: Mapping[str, Table], datasets: Iterable[str]) -> int:
    """How many cameras a model has for all views of a run; the arguments are those of `split_names`."""
    return max(numbers.stop for numbers in number_cameras(views, datasets).values())


def junk_rule(data: DataConfig, table: Table) -> JunkRule:
    """What decides the junk of a view: `data.junk` for the (first) data set of a run, its own for others."""
    return data.junk if table.manifest.dataset == data.dataset else own_junk_rule(open_view(table))


def own_junk_rule(view: View) -> JunkRule:
    """A data set's own junk rule: by scene where its samples have scenes (MSVR310), else by camera."""
    return "scene" if view.scene_id.min() >= 0 else "camera"
