"""Ablations as settings: every row of Tables 3 to 5, every point of Figure 5, and rules of the incidence."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

SWITCHES = ("model.sfm", "model.str", "model.chi")


@dataclass(frozen=True)
class Row:
    """A row of a table, or a point of a figure, before it is measured.

    Attributes:
        name: The paper's name for it.
        settings: What it changes in the recipe, as `dotted.name=value`; nothing is the full model.
        index: Letter of the paper's row; None where the paper has no such row.
        x: Position on the axis, in a figure.
        feature: The retrieval feature that it shows; None for the one that its runs report.
        against: Name of the row of the same table that it is compared with; None for no comparison.
        optional: Whether it is left out where the recipe already is what it asks for, or where its settings
            are set for all rows.
    """

    name: str
    settings: tuple[str, ...] = ()
    index: str | None = None
    x: float | None = None
    feature: str | None = None
    against: str | None = field(kw_only=True)
    optional: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class Ablation:
    """A table or figure: of the paper, of this project, or of rows from the command line alone.

    The order of rows is the order in which they are shown and means nothing else.

    Attributes:
        key: Its name, in `published.yaml` where it is the paper's.
        title: For a heading.
        rows: From top to bottom.
        full: Name of the row that is the full model (in a figure, with the paper's value on RGBNT201, or with
            the default).
        text_rows: Whether text alone, G alone and the full model without text are shown too: captions can
            make any gain of U.
        added: Rows from the command line, shown last.
    """

    key: str
    title: str
    rows: tuple[Row, ...]
    full: str
    text_rows: bool = True
    added: tuple[Row, ...] = ()

    @property
    def is_figure(self) -> bool:
        """Whether its rows are points of a curve."""
        return self.key.startswith("figure")

    @property
    def is_papers(self) -> bool:
        """Whether the paper has it."""
        return self.key.startswith(("table", "figure5"))

    def all_rows(self, reports_text: bool = False) -> tuple[Row, ...]:
        """Its own rows, those about the text, and those from the command line.

        Args:
            reports_text: Whether the recipe reports a feature that needs the text. The row without text then
                reports G.
        """
        if not self.text_rows:
            return self.rows + self.added
        full = next(row for row in self.rows if row.name == self.full)
        without_text = ("model.text=off", *(("report.feature=G",) if reports_text else ()))
        return (
            *self.rows,
            Row("T alone", full.settings, feature="T", against=full.name),
            Row("G alone", full.settings, feature="G", against=full.name),
            Row("no text", without_text, against=full.name),
            *self.added,
        )


def _modules(*on: str) -> tuple[str, ...]:
    return tuple(f"{switch}=off" for switch in SWITCHES if switch.removeprefix("model.") not in on)


def _sharing(name: str) -> tuple[str, ...]:
    return (f"model.sfm.sharing={name}",)


def _rule(name: str, *settings: str) -> Row:
    """A row of Table 4 with other hyperedges, which the paper does not have."""
    chosen = tuple(f"model.chi.{setting}" for setting in settings)
    return Row(name, chosen, against="CHI (full model)", optional=True)


def _points(symbol: str, setting: str, values: tuple[float, ...], *fixed: str) -> tuple[Row, ...]:
    """The points of a curve, each compared with the next smaller value; `fixed` are settings of all."""
    first, *others = (
        Row(f"{symbol} = {x:g}", (*fixed, f"{setting}={x:g}"), x=x, against=None) for x in values
    )
    return (first, *(replace(row, against=smaller.name) for smaller, row in pairwise([first, *others])))


ABLATIONS = {
    ablation.key: ablation
    for ablation in (
        Ablation(
            "table3",
            "Modules",
            (
                Row("baseline", _modules(), "A", against=None),
                Row("SFM", _modules("sfm"), "B", against="baseline"),
                Row("SFM + STR", _modules("sfm", "str"), "C", against="SFM"),
                Row("SFM + STR + CHI", (), "D", against="SFM + STR"),
            ),
            full="SFM + STR + CHI",
        ),
        Ablation(
            "table4",
            "Fusion",
            (
                Row("without CHI", ("model.chi=off",), "A", against=None),
                Row("MLP in place of CHI", ("model.chi.mixer=mlp",), "B", against="without CHI"),
                Row(
                    "self-attention in place of CHI",
                    ("model.chi.mixer=self_attention",),
                    "C",
                    against="MLP in place of CHI",
                ),
                Row("CHI (full model)", (), "D", against="self-attention in place of CHI"),
                _rule("rule of the released code", "incidence=euclidean"),
                # The best of the 16 rules of `--figure tau` on the demo's validation identities.
                _rule("each node with its 2 nearest", "incidence=nearest", "neighbours=2"),
            ),
            full="CHI (full model)",
        ),
        Ablation(
            "table5",
            "Sharing of alpha and beta",
            (
                Row("one pair for all layers", _sharing("all_layers"), "A", against=None),
                Row(
                    "early half of the layers", _sharing("early_half"), "B", against="one pair for all layers"
                ),
                Row(
                    "late half of the layers", _sharing("late_half"), "C", against="early half of the layers"
                ),
                Row("a pair for each head", _sharing("per_head"), "D", against="late half of the layers"),
                Row(
                    "a pair for each layer (full model)",
                    _sharing("per_layer"),
                    "E",
                    against="a pair for each head",
                ),
            ),
            full="a pair for each layer (full model)",
        ),
        Ablation(
            "figure5",
            "Perturbation probability p",
            _points("p", "model.sfm.perturbation", (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)),
            full="p = 0.01",
            text_rows=False,
        ),
        Ablation(
            "figure5_tokens",
            "Tokens K",
            _points("K", "model.str.tokens", (1, 2, 4, 8, 16)),
            full="K = 4",
            text_rows=False,
        ),
        Ablation(
            "figure_tau",
            "Hyperedges of a cosine similarity of tau or more",
            _points("tau", "model.chi.similarity_threshold", (-1, 0, 0.05, 0.2, 0.5, 0.8)),
            full="tau = 0.5",
            text_rows=False,
        ),
        Ablation(
            "figure_nearest",
            "Hyperedges of the k nearest nodes",
            _points("k", "model.chi.neighbours", (1, 2, 4, 8, 14), "model.chi.incidence=nearest"),
            full="k = 4",
            text_rows=False,
        ),
        Ablation(
            "figure_density",
            "Hyperedges of a density",
            _points("density", "model.chi.density", (0.1, 0.2, 0.3, 0.5, 0.8), "model.chi.incidence=density"),
            full="density = 0.3",
            text_rows=False,
        ),
    )
}
