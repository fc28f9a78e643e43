"""The sections of an ablation's report: differences, training curves, t-SNE, rank lists, and SFM."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_catalog.views.view_reader import open_view
from experiments.reports import rank_list_figure
from experiments.reports.hypergraph_figure import plot_run
from experiments.reports.recorded_study import RecordedRun, RecordedStudy
from experiments.reports.report_page import Picture, Section, as_png, as_svg, make_section, stored_png
from experiments.reports.sfm_sections import attention_section, open_run, strengths_section
from experiments.reports.study_figures import plot_curves, plot_differences
from experiments.reports.tsne_figure import choose_samples, plot_tsne
from experiments.run.run_folder import RunFolder
from experiments.studies.ablation.ablation_result import EPOCHS, TableRow
from experiments.studies.published import published
from experiments.studies.verdicts import DEFINITION


@dataclass(frozen=True)
class RecordedRow:
    """A row of a table with the runs that MLflow has of it.

    Attributes:
        row: As it was measured.
        runs: Seed to run.
    """

    row: TableRow
    runs: Mapping[int, RecordedRun]

    @property
    def label(self) -> str:
        """Letter and name."""
        return self.row.label

    @property
    def has_sfm(self) -> bool:
        """Whether its runs use SFM."""
        return all(run.parameters["model.sfm.enabled"] == "True" for run in self.runs.values())

    @property
    def first_run(self) -> RecordedRun:
        """The run of the lowest seed."""
        return self.runs[min(self.runs)]

    @property
    def hyperedge_size(self) -> float:
        """Nodes in a hyperedge, mean over seeds; 0 without a hypergraph."""
        return 0.0 if self.row.hyperedge_size is None else self.row.hyperedge_size.mean or 0.0

    def open_runs(self) -> dict[int, RunFolder]:
        """Seed to the folder of the run.

        Raises:
            RunFolderError: This machine cannot reach one of them.
        """
        return {seed: open_run(run) for seed, run in self.runs.items()}


def recorded_rows(study: RecordedStudy, table: str) -> list[RecordedRow]:
    """The rows of a table that have runs of their own; others show another feature of such runs."""
    found: dict[tuple[str, ...], RecordedRow] = {}
    for row in study.ablation.find_rows(table):
        known = {seed: study.find_run(name) for seed, name in row.runs.items()}
        runs = {seed: run for seed, run in known.items() if run is not None}
        if runs:
            found.setdefault(tuple(run.run for run in runs.values()), RecordedRow(row, runs))
    return list(found.values())


def ablation_sections(study: RecordedStudy) -> list[Section]:
    """The sections of an ablation's report."""
    sections: list[Section] = []
    epoch = _epoch_sentence(study)
    for table in study.ablation.tables:
        rows = recorded_rows(study, table)
        title = study.ablation.titles[table].removesuffix(f", {study.result.recipe}")
        sections.append(_difference_section(study, table, title))
        if not rows:
            continue
        sections.append(_curve_section(table, title, rows))
        full = study.ablation.find_full(table)
        models = [row for row in rows if row.row.index or row.row.name in (full, *study.ablation.added)]
        if len(models) > 1:
            sections.append(_tsne_section(table, title, models, epoch))
        if pairs := _compared_pairs(models, full):
            sections.append(_rank_section(table, title, models, pairs, epoch))
        with_sfm = partial(_open_all, [row for row in rows if row.has_sfm])
        sections.append(strengths_section(table, title, with_sfm, epoch))
    table = study.ablation.tables[0]
    full = study.ablation.find_full(table)
    # The full model, or else the first that has what is shown.
    rows = sorted(recorded_rows(study, table), key=lambda row: row.row.name != full)
    for row in [row for row in rows if row.has_sfm][:1]:
        sections.append(attention_section(row.label, row.first_run, epoch))
    return [*sections, *_hypergraph_sections(study, rows, epoch)]


def _epoch_sentence(study: RecordedStudy) -> str:
    """The epoch of figures of weights and embeddings, which is the last one, and the epoch of the table."""
    reported = study.ablation.epoch
    if reported == "last":
        return "After the last epoch, as the table."
    return f"After the last epoch; the table's numbers are of {EPOCHS[reported]}."


def _open_all(rows: Sequence[RecordedRow]) -> dict[str, list[RunFolder]]:
    return {row.label: list(row.open_runs().values()) for row in rows}


def _difference_section(study: RecordedStudy, table: str, title: str) -> Section:
    """The study's own figure of a table, and a forest plot of its differences."""

    def draw() -> Iterator[Picture]:
        if f"{table}.png" in study.pictures:
            caption = "mAP on the test identities, mean and 95 % interval over seeds."
            yield stored_png(f"{table}.png", caption, study.pictures[f"{table}.png"])
        figure = plot_differences(study.ablation.find_rows(table))
        if figure is not None:
            caption = f"Differences of mAP between rows, filled where they are real: {DEFINITION}"
            yield as_svg(f"{table}_differences.svg", caption, figure)

    text = (
        "The interval over seeds covers a second training; the interval over queries (resampled identities) "
        "covers other people before the cameras. The paper's numbers, of one seed, are shown separately."
    )
    if table.startswith("figure5"):
        text += " The paper draws curves without numbers; it says: " + " ".join(published("figure5").claims)
    return make_section(f"{table}-numbers", f"{title}: mAP and differences", text, draw)


def _curve_section(table: str, title: str, rows: Sequence[RecordedRow]) -> Section:
    def draw() -> Iterator[Picture]:
        figure = plot_curves({row.label: list(row.runs.values()) for row in rows})
        caption = "Line: mean over seeds. Band: from the lowest to the highest seed."
        yield as_svg(f"{table}_curves.svg", caption, figure)

    return make_section(f"{table}-curves", f"{title}: training", "", draw)


def _tsne_section(table: str, title: str, rows: Sequence[RecordedRow], epoch: str) -> Section:
    def draw() -> Iterator[Picture]:
        folders = {row.label: row.open_runs() for row in rows}
        seed = rank_list_figure.shared_seeds(folders.values())[0]
        runs = {label: by_seed[seed] for label, by_seed in folders.items()}
        identity = open_view(next(iter(runs.values())).view("test")).identity
        samples = choose_samples(identity)
        feature = rows[0].row.feature
        embeddings = {
            label: rank_list_figure.load_embeddings(run, feature)[samples] for label, run in runs.items()
        }
        caption = (
            f"t-SNE of feature {feature}, the same {len(np.unique(identity[samples]))} test identities in "
            f"each row: training seed {seed}, t-SNE seed 0."
        )
        yield as_svg(f"{table}_tsne.svg", caption, plot_tsne(embeddings, identity[samples]))

    text = (
        "As figure 4 of the paper. t-SNE keeps neighbours together; positions, sizes and distances of "
        "clusters mean little. The silhouette is measured before the mapping: higher means clusters that are "
        f"more compact and further apart. {epoch}"
    )
    return make_section(f"{table}-identities", f"{title}: identities", text, draw)


def _rank_section(
    table: str, title: str, rows: Sequence[RecordedRow], pairs: Sequence[tuple[str, str]], epoch: str
) -> Section:
    feature = rows[0].row.feature

    def draw() -> Iterator[Picture]:
        folders = {row.row.name: row.open_runs() for row in rows}
        labels = {row.row.name: row.label for row in rows}

        def disagreement(pair: tuple[str, str]) -> float:
            first, second = (folders[name] for name in pair)
            if not first.keys() & second.keys():
                return -1.0
            return rank_list_figure.mean_disagreement(first, second, feature)

        first, last = max(pairs, key=disagreement)
        both = {labels[name]: folders[name] for name in (first, last)}
        found = rank_list_figure.find_disagreements(folders[first], folders[last], feature)
        gained = [query for query in found if query.gain > 0]
        lost = [query for query in found if query.gain < 0]
        # Two pictures, for both together are higher than a printed page.
        for name, kind, queries in (("ranks", "gain", gained), ("ranks_lost", "lose", lost)):
            if queries:
                caption = (
                    f"From “{labels[first]}” to “{labels[last]}”: the queries that {kind} most. The number "
                    "of a query is its sample_index; green hits have its identity, orange misses do not."
                )
                figure = rank_list_figure.plot_rank_lists(both, feature, queries)
                yield as_png(f"{table}_{name}.png", caption, figure)

    text = (
        "Of all rows that are compared (and the full model with those that are compared with none), the two "
        "whose queries differ most in average precision (mean over seeds): the queries with the largest "
        f"differences, and their nearest gallery samples in both rows, without junk. {epoch}"
    )
    return make_section(f"{table}-ranks", f"{title}: where rows disagree most", text, draw)


def _hypergraph_sections(study: RecordedStudy, rows: Sequence[RecordedRow], epoch: str) -> list[Section]:
    """The hypergraphs of the first row that has some, and of the one with the largest hyperedges."""
    everything = [*rows, *(row for table in study.ablation.tables[1:] for row in recorded_rows(study, table))]
    sized = [row for row in everything if row.row.hyperedge_size is not None]
    if not sized:
        return []
    first, largest = sized[0], max(sized, key=lambda row: row.hyperedge_size)
    title = "Which tokens meet in the hyperedges of CHI"
    sections = [_hypergraph_section("hypergraphs", title, first, epoch)]
    if largest.hyperedge_size > first.hyperedge_size:
        title = "Which tokens meet where the hyperedges are largest"
        sections.append(_hypergraph_section("hypergraphs_largest", title, largest, epoch))
    return sections


def _hypergraph_section(name: str, title: str, row: RecordedRow, epoch: str) -> Section:
    def draw() -> Iterator[Picture]:
        figure = plot_run(open_run(row.first_run))
        if figure is not None:
            yield as_png(f"{name}.png", "Which tokens of a test query share a hyperedge.", figure)

    text = (
        f"“{row.label}”, seed {row.first_run.seed}: {row.hyperedge_size:.1f} nodes in a hyperedge; queries "
        f"spread evenly over the test view, not chosen. {epoch}"
    )
    return make_section(name.replace("_", "-"), title, text, draw)


def _compared_pairs(rows: Sequence[RecordedRow], full: str) -> list[tuple[str, str]]:
    """Names of two rows each: those that are compared, and a row that is compared with none and `full`."""
    names = [row.row.name for row in rows]
    pairs = []
    for row in rows:
        name, against = row.row.name, row.row.mean_average_precision.against
        pairs.append((against, name) if against in names else (name, full))
    return [(first, second) for first, second in pairs if second in names and first != second]
