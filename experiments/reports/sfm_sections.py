"""The sections of a report about SFM: the learned alpha and beta, and the attention before and after."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from data_catalog.views.view_reader import open_view
from experiments.evaluating import evaluation_target
from experiments.reports.attention_figures import (
    learned_strengths,
    plot_attention_maps,
    plot_foreground_shares,
    spread_queries,
)
from experiments.reports.recorded_study import RecordedRun
from experiments.reports.report_page import Picture, Section, as_png, as_svg, make_section
from experiments.reports.study_figures import plot_strengths
from experiments.run.run_folder import RunFolder, RunFolderError

ATTENTION_SAMPLES = 3
SHARE_SAMPLES = 48


def open_run(run: RecordedRun) -> RunFolder:
    """The folder in which a run was trained and finished.

    Raises:
        RunFolderError: This machine cannot reach the folder, or the run was started again and is unfinished.
    """
    if not run.folder.list_files():
        raise RunFolderError(
            f"the folder {run.folder} of run {run.run} cannot be reached from this machine; make the report "
            "where it is, or name its --workspace"
        )
    if not run.folder.is_finished:
        raise RunFolderError(f"{run.folder} is not finished; run the command that started it again")
    return run.folder


def strengths_section(
    key: str, title: str, open_runs: Callable[[], Mapping[str, Sequence[RunFolder]]], epoch: str
) -> Section:
    """The alpha and beta that runs with SFM have learned, by layer.

    Args:
        key: Key of the section.
        title: Title of the runs.
        open_runs: Gives the runs of all seeds by label; may raise `RunFolderError`.
        epoch: The epoch, as a sentence.
    """

    def draw() -> Iterator[Picture]:
        learned, initial = {}, 0.0
        for label, folders in open_runs().items():
            pairs = [learned_strengths(run) for run in folders]
            learned[label] = (np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
            initial = folders[0].config.model.sfm.initial_strength
        if learned:
            caption = "Mean over seeds and heads, with bars from the lowest to the highest of them."
            yield as_svg(f"{key}_strengths.svg", caption, plot_strengths(learned, initial))

    text = (
        "Equation 7: alpha pulls logits between foreground tokens towards their row's maximum, beta pulls "
        f"the others towards their row's minimum. {epoch}"
    )
    return make_section(f"{key}-strengths", f"{title}: learned alpha and beta", text, draw)


def attention_section(label: str, run: RecordedRun, epoch: str) -> Section:
    """The attention of one run with and without SFM.

    Args:
        label: Label of the run.
        run: The run.
        epoch: The epoch, as a sentence.
    """

    def draw() -> Iterator[Picture]:
        folder = open_run(run)
        target = evaluation_target.load_run(folder, catalog=folder.catalog, epoch="last")
        view = open_view(target.table)
        for number, row in enumerate(spread_queries(view, ATTENTION_SAMPLES)):
            figure = plot_attention_maps(target, view, row)
            yield as_png(f"attention_{number}.png", f"Test query {view.sample_id[row]}.", figure)
        yield as_svg(
            "attention_shares.svg",
            "Share of the class token's attention to patches that goes to foreground patches.",
            plot_foreground_shares(target, view, SHARE_SAMPLES),
        )

    text = (
        f"“{label}”, seed {run.seed}; queries spread evenly over the test view, not chosen. {epoch} "
        "Before: the same layer with the same weights and tokens, without modulation (softmax of eq. 3); "
        "after: eq. 8. Maps show the class token's attention to patches, mean over heads: brighter is more. "
        "Before and after have one scale, and the number above a map is the foreground's share."
    )
    return make_section("attention", "What SFM did to attention", text, draw)
