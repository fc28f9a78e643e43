from experiments.reports.report_tables import ablation_verdict
from tests.experiments import made_up


def row(name, against="A", difference=0.01, **compared):
    return made_up.table_row(name, against=against, difference=difference, **compared)


def test_differences_are_grouped_by_verdict_and_by_what_would_decide_them():
    rows = [
        made_up.table_row("A"),
        row("B", difference=-0.02, verdict="undecided", advice="about 9 seeds would decide"),
        row("C", verdict="not real"),
        row("D", difference=0.05, verdict="real"),
        row("E", against="D", verdict="undecided", advice="about 9 seeds would decide"),
        row("F", verdict="undecided", advice="1 seed cannot decide, use 3 or more"),
    ]
    assert ablation_verdict(rows) == (
        "Real: D minus A (+5.0 points). Not real: C minus A (+1.0 points). "
        "Undecided (about 9 seeds would decide): B minus A (-2.0 points); E minus D (+1.0 points). "
        "Undecided (1 seed cannot decide, use 3 or more): F minus A (+1.0 points)."
    )


def test_differences_of_older_versions_are_real_or_undecided():
    rows = [row("B", real=True), row("C", real=False), row("D", real=None)]
    assert ablation_verdict(rows) == (
        "Real: B minus A (+1.0 points). Undecided: C minus A (+1.0 points); D minus A (+1.0 points)."
    )
