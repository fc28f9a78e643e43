"""The tables that a run reads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_catalog.checks.findings import Finding
from data_catalog.tables.table import Table
from experiments.run.run_result import InitialFacts

if TYPE_CHECKING:
    from torch import Tensor

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
        captions: What the text features of the views were made from; None where the views hold no text.
        digests: Table name to digest, of these and of all that they were made from.
        warnings: What the checks of the data warn of.
        initial: The weights that it begins with; None for those of CLIP alone.
    """

    views: dict[str, Table]
    captions: Table | None
    digests: dict[str, str]
    warnings: tuple[Finding, ...] = ()
    initial: InitialWeights | None = None

    @property
    def catalog(self) -> str | None:
        """Where the views are; None where there are none."""
        return next((view.catalog for view in self.views.values()), None)
