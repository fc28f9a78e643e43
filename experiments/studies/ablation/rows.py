"""The paper's ablations as settings: every row of Tables 3 to 5 and every point of Figure 5."""

from dataclasses import dataclass, replace

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
        against: Name of the row that it is compared with.
    """

    name: str
    settings: tuple[str, ...] = ()
    index: str | None = None
    x: float | None = None
    feature: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class Ablation:
    """A table or figure of the paper.

    Attributes:
        key: Its name in `published.yaml`.
        title: For a heading.
        rows: From top to bottom.
    """

    key: str
    title: str
    rows: tuple[Row, ...]

    @property
    def is_figure(self) -> bool:
        """Whether it is a figure of the paper."""
        return self.key.startswith("figure")

    def all_rows(self, reports_text: bool = False) -> tuple[Row, ...]:
        """The paper's rows, each compared with the one above it, and those beside them.

        Beside a table's rows are text alone, G alone and the full model without text: captions can make any
        gain of U.

        Args:
            reports_text: Whether the recipe reports a feature that needs the text. The row without text then
                reports G.
        """
        above = [None, *(row.name for row in self.rows)]
        rows = [replace(row, against=name) for row, name in zip(self.rows, above, strict=False)]
        if self.is_figure:
            return tuple(rows)
        full = self.rows[-1]
        without_text = ("model.text=off", *(("report.feature=G",) if reports_text else ()))
        return (
            *rows,
            Row("T alone", full.settings, feature="T", against=full.name),
            Row("G alone", full.settings, feature="G", against=full.name),
            Row("no text", without_text, against=full.name),
        )


def _modules(*on: str) -> tuple[str, ...]:
    return tuple(f"{switch}=off" for switch in SWITCHES if switch.removeprefix("model.") not in on)


def _sharing(name: str) -> tuple[str, ...]:
    return (f"model.sfm.sharing={name}",)


ABLATIONS = {
    ablation.key: ablation
    for ablation in (
        Ablation(
            "table3",
            "Modules",
            (
                Row("baseline", _modules(), "A"),
                Row("SFM", _modules("sfm"), "B"),
                Row("SFM + STR", _modules("sfm", "str"), "C"),
                Row("SFM + STR + CHI", (), "D"),
            ),
        ),
        Ablation(
            "table4",
            "Fusion",
            (
                Row("without CHI", ("model.chi=off",), "A"),
                Row("MLP in place of CHI", ("model.chi.mixer=mlp",), "B"),
                Row("self-attention in place of CHI", ("model.chi.mixer=self_attention",), "C"),
                Row("CHI (full model)", (), "D"),
            ),
        ),
        Ablation(
            "table5",
            "Sharing of alpha and beta",
            (
                Row("one pair for all layers", _sharing("all_layers"), "A"),
                Row("early half of the layers", _sharing("early_half"), "B"),
                Row("late half of the layers", _sharing("late_half"), "C"),
                Row("a pair for each head", _sharing("per_head"), "D"),
                Row("a pair for each layer (full model)", _sharing("per_layer"), "E"),
            ),
        ),
        Ablation(
            "figure5",
            "Perturbation probability p",
            tuple(
                Row(f"p = {p:g}", (f"model.sfm.perturbation={p:g}",), x=p)
                for p in (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
            ),
        ),
        Ablation(
            "figure5_tokens",
            "Tokens K",
            tuple(Row(f"K = {k}", (f"model.str.tokens={k}",), x=k) for k in (1, 2, 4, 8, 16)),
        ),
    )
}
