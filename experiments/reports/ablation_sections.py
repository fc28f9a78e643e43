"""The report of an ablation: its tables as they were measured, and its pictures."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_catalog.views.training_view import open_view
from experiments.evaluating import evaluation_target
from experiments.reports import attention_pictures, identity_maps, rank_differences
from experiments.reports import study_figures as study_pictures
from experiments.reports.page import Line, PageTable, Picture, Section, as_png, as_svg, section, stored_png
from experiments.reports.study_records import RecordedStudy, StudyRun
from experiments.run.run_folder import RunFolder, RunFolderError
from experiments.studies.ablation.ablation_result import TableRow
from experiments.studies.ablation.ablation_table import EPOCHS
from experiments.studies.ablation.table_text import HEADER, cells
from experiments.studies.published import published

ATTENTION_SAMPLES = 3
SHARE_SAMPLES = 48


@dataclass(frozen=True)
class Arm:
    """A row of a table with its runs.

    Attributes:
        label: Letter and name.
        row: As it was measured.
        runs: Seed to run.
    """

    label: str
    row: TableRow
    runs: Mapping[int, StudyRun]

    @property
    def of_paper(self) -> bool:
        """Whether the paper has this row."""
        return self.row.index is not None

    def folders(self) -> dict[int, RunFolder]:
        """Seed to the run's folder.

        Raises:
            RunFolderError: One cannot be reached from here.
        """
        return {seed: opened(run) for seed, run in self.runs.items()}


def opened(run: StudyRun) -> RunFolder:
    """The folder in which a run was trained and finished.

    Raises:
        RunFolderError: It cannot be reached from here, or another start of the run is not finished yet.
    """
    if not run.folder.is_dir():
        raise RunFolderError(
            f"the folder {run.folder} of run {run.run} cannot be reached from this machine; make the report "
            "where it is"
        )
    folder = RunFolder.open(run.folder)
    if not folder.is_finished:
        raise RunFolderError(f"{folder.path} is not finished; run the command that started it again")
    return folder


def arms_of(study: RecordedStudy, table: str) -> list[Arm]:
    """The rows of a table that have runs of their own, not those that show another feature of such runs."""
    shown: dict[tuple[str, ...], Arm] = {}
    for row in study.ablation.rows_of(table):
        known = {seed: study.run_called(name) for seed, name in row.runs.items()}
        runs = {seed: run for seed, run in known.items() if run is not None}
        names = tuple(run.run for run in runs.values())
        if runs and names not in shown:
            shown[names] = Arm(row.label, row, runs)
    return list(shown.values())


def ablation_sections(study: RecordedStudy) -> list[Section]:
    """Pictures of an ablation's tables and figures."""
    made: list[Section] = []
    epoch = _last_epoch(study)
    for table in study.ablation.tables:
        arms = arms_of(study, table)
        title = study.ablation.titles[table].removesuffix(f", {study.result.recipe}")
        rows = study.ablation.rows_of(table)
        made.append(_numbers(study, table, title, rows))
        if not arms:
            continue
        made.append(_curves(table, title, {arm.label: list(arm.runs.values()) for arm in arms}))
        lettered = [arm for arm in arms if arm.of_paper]
        if len(lettered) > 1:
            made.append(_maps(table, title, lettered, epoch))
            made.append(_ranks(table, title, lettered, epoch))
        with_sfm = partial(_folders_of, [arm for arm in arms if _has_sfm(arm)])
        made.append(strengths_section(table, title, with_sfm, epoch))
    modulated = [arm for arm in arms_of(study, study.ablation.tables[0]) if _has_sfm(arm)]
    if not modulated:
        return made
    # The full model is the row that changes least in the recipe.
    full = min(modulated, key=lambda arm: len(arm.row.config))
    return [*made, attention_section(full.label, full.runs[min(full.runs)], epoch)]


def _last_epoch(study: RecordedStudy) -> str:
    """Of which epoch pictures of weights and embeddings are, which only the last one keeps, and the table."""
    reported = study.ablation.epoch
    if reported == "last":
        return "After the last epoch, as the table."
    return f"After the last epoch; the table's numbers are of {EPOCHS[reported]}."


def _has_sfm(arm: Arm) -> bool:
    return all(run.parameters["sfm.enabled"] == "True" for run in arm.runs.values())


def _numbers(study: RecordedStudy, table: str, title: str, rows: Sequence[TableRow]) -> Section:
    """The study's own picture of a table, and its differences."""

    def draw() -> Iterator[Picture]:
        if f"{table}.png" in study.pictures:
            caption = "mAP on the test identities, mean and 95 % interval over seeds."
            yield stored_png(f"{table}.png", caption, study.pictures[f"{table}.png"])
        forest = study_pictures.differences(rows)
        if forest is not None:
            yield as_svg(
                f"{table}_differences.svg",
                "Differences of mAP between rows. Filled: real, by both tests after Holm's correction.",
                forest,
            )

    text = (
        "The interval over seeds says what training again could give, that over queries (identities drawn "
        "again) what other people before the cameras could. The paper's numbers, of one seed, stand apart."
    )
    if table.startswith("figure5"):
        text += " The paper draws curves without numbers; it says: " + " ".join(published("figure5").claims)
    return section(f"{table}-numbers", f"{title}: mAP and differences", text, draw)


def _curves(table: str, title: str, arms: Mapping[str, Sequence[StudyRun]]) -> Section:
    def draw() -> Iterator[Picture]:
        caption = "Line: mean over seeds. Band: from the lowest to the highest seed."
        yield as_svg(f"{table}_curves.svg", caption, study_pictures.curves(arms))

    return section(f"{table}-curves", f"{title}: training", "", draw)


def _maps(table: str, title: str, arms: Sequence[Arm], epoch: str) -> Section:
    def draw() -> Iterator[Picture]:
        folders = {arm.label: arm.folders() for arm in arms}
        seed = rank_differences.seeds_in_common(folders.values())[0]
        runs = {label: of_seed[seed] for label, of_seed in folders.items()}
        identity = open_view(next(iter(runs.values())).view("test")).identity
        rows = identity_maps.shown_rows(identity)
        feature = arms[0].row.feature
        embeddings = {label: rank_differences.embedding_of(run, feature)[rows] for label, run in runs.items()}
        caption = (
            f"t-SNE of feature {feature}, the same {len(np.unique(identity[rows]))} test identities in each "
            f"row: training seed {seed}, t-SNE seed 0."
        )
        yield as_svg(f"{table}_tsne.svg", caption, identity_maps.identity_maps(embeddings, identity[rows]))

    text = (
        "As figure 4 of the paper. t-SNE keeps neighbours together; places, sizes and distances of clusters "
        "mean little. The silhouette is measured before the mapping: higher is more compact and more apart. "
        f"{epoch}"
    )
    return section(f"{table}-identities", f"{title}: identities", text, draw)


def _ranks(table: str, title: str, arms: Sequence[Arm], epoch: str) -> Section:
    feature = arms[0].row.feature
    neighbours = list(itertools.pairwise(arms))
    whole = (arms[0], arms[-1])
    pairs = neighbours if whole in neighbours else [*neighbours, whole]

    def apart(pair: tuple[Arm, Arm]) -> float:
        if not pair[0].folders().keys() & pair[1].folders().keys():
            return -1.0
        return rank_differences.disagreement(pair[0].folders(), pair[1].folders(), feature)

    def draw() -> Iterator[Picture]:
        first, last = max(pairs, key=apart)
        both = {arm.label: arm.folders() for arm in (first, last)}
        found = rank_differences.disagreements(both[first.label], both[last.label], feature)
        if found:
            caption = (
                f"From “{first.label}” to “{last.label}”: the queries that gain most, then those that lose "
                "most. The number behind a query is its sample_index; green hits have its identity, orange "
                "misses have not."
            )
            figure = rank_differences.rank_differences(both, feature, found)
            yield as_png(f"{table}_ranks.png", caption, figure)

    text = (
        "Of neighbouring rows, and of the first and the last, the two whose queries differ most in average "
        "precision, mean over seeds: the queries on which they differ most, and their nearest gallery "
        f"samples in both, without junk. {epoch}"
    )
    return section(f"{table}-ranks", f"{title}: where rows disagree most", text, draw)


def _folders_of(arms: Sequence[Arm]) -> dict[str, list[RunFolder]]:
    return {arm.label: list(arm.folders().values()) for arm in arms}


def strengths_section(
    key: str, title: str, runs: Callable[[], Mapping[str, Sequence[RunFolder]]], epoch: str
) -> Section:
    """The alpha and beta that runs with SFM have learned, by layer.

    Args:
        key: What the section is named after.
        title: What the runs belong to.
        runs: Gives the runs of each seed by what they are called together; may find that a folder is gone.
        epoch: Of which epoch that is, in a sentence.
    """

    def draw() -> Iterator[Picture]:
        learned, initial = {}, 0.0
        for label, folders in runs().items():
            pairs = [attention_pictures.learned_strengths(run) for run in folders]
            learned[label] = (np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
            initial = folders[0].config.model.sfm.initial_strength
        if learned:
            caption = "Mean over seeds and heads, with bars from the lowest to the highest of them."
            yield as_svg(f"{key}_strengths.svg", caption, study_pictures.strengths(learned, initial))

    text = (
        "Equation 7: alpha pulls logits between foreground tokens towards their row's maximum, beta pulls "
        f"the others towards their row's minimum. {epoch}"
    )
    return section(f"{key}-strengths", f"{title}: learned alpha and beta", text, draw)


def attention_section(label: str, run: StudyRun, epoch: str) -> Section:
    """What SFM did to the attention of one run.

    Args:
        label: What the run is called.
        run: It.
        epoch: Of which epoch that is, in a sentence.
    """

    def draw() -> Iterator[Picture]:
        opened(run)
        trained = evaluation_target.load_run(run.folder, epoch="last")
        view = open_view(trained.table)
        for number, row in enumerate(attention_pictures.shown_samples(view, ATTENTION_SAMPLES)):
            figure = attention_pictures.attention_maps(trained, view, row)
            yield as_png(f"attention_{number}.png", f"Test query {view.sample_id[row]}.", figure)
        yield as_svg(
            "attention_shares.svg",
            "Part of the class token's attention to patches that goes to foreground patches.",
            attention_pictures.foreground_shares(trained, view, SHARE_SAMPLES),
        )

    text = (
        f"“{label}”, seed {run.seed}; queries spread evenly over the test view, not chosen. {epoch} "
        "Before: the same layer with the same weights and tokens, without modulation (softmax of eq. 3); "
        "after: eq. 8. Maps show the class token's attention to patches, mean over heads: brighter is more, "
        "one scale for before and after, and above each stands the foreground's part of it."
    )
    return section("attention", "What SFM did to attention", text, draw)


def ablation_tables(study: RecordedStudy) -> list[PageTable]:
    """The tables of an ablation, as in its own Markdown."""
    tables = []
    for key in study.ablation.tables:
        rows = study.ablation.rows_of(key)
        lines = tuple(
            Line(
                f"{key}-{number}",
                tuple(cells(row)),
                row.index is None and row.x is None,
                tuple(row.runs.values()),
            )
            for number, row in enumerate(rows)
        )
        tables.append(PageTable(key, study.ablation.titles[key], HEADER, lines, verdict(rows)))
    return tables


def verdict(rows: Sequence[TableRow]) -> str:
    """Which differences of a table are real, in words."""
    sentences = []
    for real, opening in ((True, "Real"), (False, "Not shown to be real"), (None, "Cannot be said")):
        named = [
            f"{row.name} less {row.mean_average_precision.against} ({100 * difference:+.1f} points)"
            for row in rows
            if (difference := row.mean_average_precision.difference) is not None
            and row.mean_average_precision.real is real
        ]
        if named:
            sentences.append(f"{opening}: {'; '.join(named)}.")
    return " ".join(sentences)
