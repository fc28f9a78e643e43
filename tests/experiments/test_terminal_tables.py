"""What the scripts print for a terminal of 80 columns."""

import json
import re
import shlex
from collections import Counter

import pytest
from rich.console import Console

from experiments import ablate, evaluate, report, sweep_sfm
from experiments.planning.plan_printout import print_plan
from experiments.planning.run_plan import RunPlan
from experiments.recipes import resolve
from experiments.reports.report_files import StudyReport
from experiments.studies.ablation.ablation_result import AblationResult
from experiments.studies.ablation.rows import ABLATIONS
from experiments.studies.published import published_methods
from experiments.studies.sweep.sweep_result import SweepResult
from experiments.terminal_tables import print_facts, print_marked, print_table, text_console, text_table
from experiments.tracking.mlflow_store import MlflowRun
from tests import json_samples
from tests.experiments import made_up


def sample(name, record):
    return record.model_validate(json.loads((json_samples.FOLDER / f"{name}.json").read_text()))


def widest_ablation():
    """Every row of every table of the paper, with the longest numbers."""
    rows = [
        made_up.table_row(
            row.name,
            std=0.123,
            against=row.against,
            difference=None if row.against is None else -0.567,
            difference_interval=(-0.999, 0.999),
            query_interval=(-0.888, 0.888),
            verdict=None if row.against is None else "undecided",
            advice="" if row.against is None else "about 17 seeds would decide",
        ).model_copy(update={"table": key, "index": row.index})
        for key, ablation in ABLATIONS.items()
        for row in ablation.all_rows()
    ]
    stored = sample("ablate", AblationResult)
    titles = {key: f"{key} of the paper ({one.title}), rgbnt201-paper" for key, one in ABLATIONS.items()}
    changes = {"tables": tuple(ABLATIONS), "titles": titles, "rows": tuple(rows)}
    return stored.model_copy(update=changes)


def many_settings():
    stored = sample("evaluate", evaluate.Evaluation)
    missing = [(), *evaluate.PROPER_SUBSETS]
    settings = [
        stored.settings[0].model_copy(
            update={"missing": absent, "reranked": variant is not None, "rerank_variant": variant}
        )
        for absent in missing
        for variant in (None, "field")
    ]
    return stored.model_copy(update={"settings": tuple(settings)})


def one_setting():
    stored = sample("evaluate", evaluate.Evaluation)
    return stored.model_copy(update={"settings": stored.settings[:1]})


def published_report():
    stored = sample("report", report.RunReport)
    return stored.model_copy(update={"published": published_methods("msvr310")})


PRINTED = {
    "ablate": lambda: ablate.print_ablation(widest_ablation()),
    "evaluate": lambda: evaluate.show(one_setting()),
    "evaluate many": lambda: evaluate.show(many_settings()),
    "plan": lambda: print_plan(sample("plan", RunPlan)),
    "report": lambda: report.print_report(sample("report", report.RunReport)),
    "report beside published": lambda: report.print_report(published_report()),
    "report of a study": lambda: report.print_study_report(sample("report_study", StudyReport)),
    "sweep": lambda: sweep_sfm.print_sweep(sample("sweep", SweepResult)),
}


def words(text: str) -> Counter:
    return Counter(word for word in text.split() if "─" not in word)


@pytest.mark.parametrize("name", PRINTED)
def test_80_columns_cut_off_nothing_and_break_no_word(name, capsys, monkeypatch):
    shown = {}
    for columns in (80, 1000):
        monkeypatch.setenv("COLUMNS", str(columns))
        PRINTED[name]()
        shown[columns] = capsys.readouterr().out
    assert "…" not in shown[80]
    assert words(shown[80]) == words(shown[1000])


@pytest.mark.parametrize("name", PRINTED)
def test_tables_fit_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    PRINTED[name]()
    rules = [line for line in capsys.readouterr().out.splitlines() if line.startswith("──")]
    assert all(len(line) <= 80 for line in rules)
    counts = {"ablate": 8, "plan": 5, "report of a study": 0, "report beside published": 2}
    assert len(rules) == counts.get(name, 1)


def test_settings_of_a_plan_are_printed_as_set_takes_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    plan = sample("plan", RunPlan)
    print_plan(plan)
    table = capsys.readouterr().out.partition("changed from")[2].partition("\n\n")[0]
    settings = [re.split("  +", line) for line in table.splitlines()[2:]]
    typed = [f"{name}={value}" for name, value, *_ in settings]
    # The stored sample lacks settings that came later, which have their defaults.
    assert resolve(plan.recipe, typed).flat() == resolve(plan.recipe, []).flat() | plan.config


def test_ablation_shows_both_intervals_verdict_and_the_row_compared_with(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stored = sample("ablate", AblationResult)
    ablate.print_ablation(stored)
    shown = capsys.readouterr().out.splitlines()
    row = stored.rows[1].mean_average_precision
    first = next(number for number, line in enumerate(shown) if line.startswith("B MLP"))
    low, high = row.difference_interval
    assert f"seeds {100 * low:+.1f} to {100 * high:+.1f}" in " ".join(shown[first].split())
    assert shown[first].rstrip().endswith("undecided")
    low, high = row.query_interval
    assert f"vs A queries {100 * low:+.1f} to {100 * high:+.1f}" in " ".join(shown[first + 1].split())


def test_wide_ablation_has_every_column_of_the_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = widest_ablation()
    ablate.print_ablation(result, wide=True)
    shown = capsys.readouterr().out
    header = next(line for line in shown.splitlines() if line.startswith("row"))
    assert all(name in header for name in ablate.HEADER)
    assert "- Compared: p = 0.005 with p = 0;" in shown


def test_settings_of_an_evaluation_are_rows_and_features_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = many_settings()
    evaluate.show(result)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    features = list(result.settings[0].metrics)
    assert table[1] == ["missing", *features]
    numbers = [f"{100 * metrics.value('mAP'):.1f}" for metrics in result.settings[0].metrics.values()]
    assert table[3] == ["nothing", *numbers]
    assert table[4] == ["nothing,", "re-ranked", *numbers]
    evaluate.show(result, wide=True)
    ranks = capsys.readouterr().out
    assert f"{100 * result.settings[0].metrics['U'].value('rank10'):.1f}" in ranks


def test_table_is_wider_than_a_terminal_that_is_too_narrow_for_its_numbers(capsys):
    table = text_table("title", "name", "number", "other")
    table.add_row("some long name", "1000.0 to 2000.0", "two\n22 lines")
    print_table(Console(width=20), table)
    shown = capsys.readouterr().out
    assert words(shown) == words("title name number other some long name 1000.0 to 2000.0 two 22 lines")
    assert "1000.0 to 2000.0  " in shown


def test_text_of_users_is_printed_as_it_is(capsys):
    """Else `dead = [none]` would be `dead = `, and a name with `[/a]` an error."""
    console = text_console(width=60)
    table = text_table("dead = [none]", "sample", "number")
    table.add_row("p0/[/a]2 :car:", "1.0")
    print_table(console, table)
    print_facts(console, {"page": "[bold].html"})
    print_marked(console, "not drawn", "yellow", "[red]: no [weights]")
    shown = words(capsys.readouterr().out)
    expected = "dead = [none] sample number p0/[/a]2 :car: 1.0 page [bold].html not drawn [red]: no [weights]"
    assert shown == words(expected)


def test_command_that_serves_a_store_can_be_pasted():
    run = MlflowRun(uri="sqlite:////data/my runs (old)/mlflow.db", run_id="1", experiment_id="1")
    command, opened = report._mlflow(run).split("\n")
    assert shlex.split(command)[-1] == "sqlite:////data/my runs (old)/mlflow.db"
    assert "then open http://127.0.0.1:5000" in opened


def test_report_puts_a_run_where_its_precision_is_among_the_published_ones(capsys):
    stored = published_report()
    between = stored.published[3].metrics["mAP"] - 0.0001
    metrics = stored.reported.metrics.model_copy(update={"mean_average_precision": between})
    reported = stored.reported.model_copy(update={"metrics": metrics})
    report.print_report(stored.model_copy(update={"reported": reported}))
    _, _, table = capsys.readouterr().out.partition("published on this data set")
    lines = [line.split()[0] for line in table.splitlines()[3 : 3 + 5]]
    assert lines == [*(method.name for method in stored.published[:4]), "this"]
