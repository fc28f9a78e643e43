"""The sections of a sweep's report: figures of the search, and what SFM does in the best trial."""

from collections.abc import Iterator

from experiments.reports.recorded_study import RecordedStudy
from experiments.reports.report_page import Picture, Section, as_svg, make_section, stored_png
from experiments.reports.sfm_sections import attention_section, open_run, strengths_section
from experiments.reports.study_figures import plot_trial_curves
from experiments.run.run_folder import RunFolder


def sweep_sections(study: RecordedStudy) -> list[Section]:
    """The sections of a sweep's report."""
    best = study.sweep.best
    run = None if best is None else study.find_run(best.run)

    def draw_search() -> Iterator[Picture]:
        for name, data in sorted(study.pictures.items()):
            yield stored_png(name, name.rpartition(".")[0].replace("_", " "), data)

    def draw_curves() -> Iterator[Picture]:
        figure = plot_trial_curves(study.runs, "" if run is None else run.run)
        yield as_svg(
            "trial_curves.svg", "One line per trial; a line that ends early is a stopped trial.", figure
        )

    sections = [
        make_section("search", "The search", "From validation identities, never test.", draw_search),
        make_section("curves", "Training", "", draw_curves),
    ]
    if best is None or run is None:
        return sections
    label, epoch = f"trial {best.number}", "After the last epoch."

    def open_with_sfm() -> dict[str, list[RunFolder]]:
        folder = open_run(run)
        return {label: [folder]} if folder.config.model.sfm.enabled else {}

    return [
        *sections,
        strengths_section("best", "Best trial", open_with_sfm, epoch),
        attention_section(label, run, epoch),
    ]
