"""The origin of each number of a study: runs in MLflow, code, settings, data, versions and machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.reports.recorded_study import RecordedRun, RecordedStudy
from experiments.studies.ablation.ablation_result import AblationResult, EpochSpread, TableRow


@dataclass(frozen=True)
class RunProvenance:
    """The origin of the numbers of one run.

    Attributes:
        run: The run.
        numbers: Its contributions, such as `table3 B SFM: mAP 61.2, rank1 70.0`.
        settings: Settings that differ between the study's runs.
        facts: Code, data, versions and machine, where they differ between the study's runs.
    """

    run: RecordedRun
    numbers: tuple[str, ...]
    settings: Mapping[str, str]
    facts: Mapping[str, str]


@dataclass(frozen=True)
class StudyProvenance:
    """The origin of the numbers of a study.

    Attributes:
        runs: For each run.
        facts: Code, data, versions and machine that all runs share.
        settings: Settings that all runs share.
    """

    runs: tuple[RunProvenance, ...]
    facts: Mapping[str, str]
    settings: Mapping[str, str]


def find_provenance(study: RecordedStudy) -> StudyProvenance:
    """All that MLflow knows about the origin of a study's numbers."""
    rows = study.result.rows if isinstance(study.result, AblationResult) else ()
    facts = {run.run: _facts(run) for run in study.runs}
    shared_facts = _shared(list(facts.values()))
    shared_settings = _shared([run.parameters for run in study.runs])
    runs = tuple(
        RunProvenance(
            run=run,
            numbers=tuple(_numbers(run.run, rows)),
            settings=dict(sorted(run.parameters.items() - shared_settings.items())),
            facts=dict(sorted(facts[run.run].items() - shared_facts.items())),
        )
        for run in study.runs
    )
    return StudyProvenance(runs, shared_facts, shared_settings)


def _facts(run: RecordedRun) -> dict[str, str]:
    logged = {name: value for name, value in run.tags.items() if name.startswith(("code.", "environment."))}
    return logged | {f"data.{name}": digest for name, digest in run.digests.items()}


def _shared(each: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The facts that are equal in all of them."""
    return dict(sorted(set.intersection(*(set(facts.items()) for facts in each)))) if each else {}


def _numbers(run: str, rows: Sequence[TableRow]) -> Iterable[str]:
    for row in rows:
        for seed, name in row.runs.items():
            if name == run:
                measured = ", ".join(
                    f"{name} {100 * metric.values[seed]:.2f}"
                    for name, metric in (("mAP", row.mean_average_precision), ("rank1", row.rank1))
                )
                epochs = "".join(_other_epochs(row.epochs or {}, seed))
                yield f"{row.table} {row.label}: {measured}{epochs}"


def _other_epochs(epochs: Mapping[str, EpochSpread], seed: int) -> Iterable[str]:
    """The mAP of each choice of epoch, with the number of that epoch."""
    for choice, spread in epochs.items():
        if seed in spread.values:
            which = f", epoch {spread.epoch[seed]}" if seed in spread.epoch else ""
            yield f"; {choice.replace('_', ' ')}{which}: mAP {100 * spread.values[seed]:.2f}"
