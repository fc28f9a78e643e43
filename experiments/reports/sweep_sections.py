"""The report of a sweep: its trials as a table, its pictures, and what SFM did in the best trial."""

from collections.abc import Iterator
from typing import Any

from experiments.reports import study_figures as study_pictures
from experiments.reports.ablation_sections import attention_section, opened, strengths_section
from experiments.reports.page import Line, PageTable, Picture, Section, as_svg, section, stored_png
from experiments.reports.study_records import RecordedStudy
from experiments.run.run_folder import RunFolder
from experiments.studies.sweep.sweep_result import BestTrial, SweepTrial


def sweep_table(study: RecordedStudy) -> PageTable:
    """The trials of a sweep, the best first."""
    trials = sorted(study.sweep.trials, key=_from_best)
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    front = {trial.number for trial in study.sweep.pareto}
    header = ("trial", "validation mAP, %", "state", "epochs", "cost, TFLOP", *names, "on the Pareto front")
    lines = tuple(
        Line(
            key=f"trial-{trial.number}",
            cells=(
                str(trial.number),
                "" if trial.value is None else f"{100 * trial.value:.2f}",
                ": ".join(filter(None, [trial.state, trial.reason])),
                _shown(trial.epochs),
                _shown(trial.cost),
                *(_shown(trial.values.get(name)) for name in names),
                "yes" if trial.number in front else "",
            ),
            apart=trial.value is None,
            runs=() if study.run_called(trial.run) is None else (trial.run,),
        )
        for trial in trials
    )
    return PageTable("trials", "Trials", header, lines, _verdict(study.sweep.best))


def _from_best(trial: SweepTrial) -> tuple[bool, float, int]:
    value = trial.value
    return value is None, -(value or 0.0), trial.number


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _verdict(best: BestTrial | None) -> str:
    if best is None:
        return "No trial could be finished."
    settings = ", ".join(f"{name}={_shown(value)}" for name, value in best.values.items())
    return (
        f"Best: trial {best.number} ({settings}), {100 * best.value:.2f} % validation mAP, and "
        f"{100 * best.test.mean_average_precision:.2f} % on the test identities at epoch {best.test.epoch}. "
        "They had no say in which trial or epoch. The best of many is better than it would be again: train "
        "it with other seeds before it is compared."
    )


def sweep_sections(study: RecordedStudy) -> list[Section]:
    """Pictures of a sweep."""
    found = study.sweep.best
    best = None if found is None else study.run_called(found.run)

    def stored() -> Iterator[Picture]:
        for name, data in sorted(study.pictures.items()):
            yield stored_png(name, name.rpartition(".")[0].replace("_", " "), data)

    def curves() -> Iterator[Picture]:
        figure = study_pictures.trial_curves(study.runs, "" if best is None else best.run)
        yield as_svg("trial_curves.svg", "A line a trial; one that ends early was stopped.", figure)

    made = [
        section("search", "The search", "Drawn from validation identities, never test.", stored),
        section("curves", "Training", "", curves),
    ]
    if found is None or best is None:
        return made
    label, epoch = f"trial {found.number}", "After the last epoch."

    def best_with_sfm() -> dict[str, list[RunFolder]]:
        folder = opened(best)
        return {label: [folder]} if folder.config.model.sfm.enabled else {}

    return [
        *made,
        strengths_section("best", "Best trial", best_with_sfm, epoch),
        attention_section(label, best, epoch),
    ]
