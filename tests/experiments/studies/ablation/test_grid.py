import csv
import io
import json
from itertools import pairwise

import pytest
from matplotlib.figure import Figure

from data_catalog.storage.folders import Folder
from experiments import ablate
from experiments.experiment_config import ConfigError
from experiments.studies.ablation import grid
from experiments.studies.ablation.ablation_result import AblationResult
from experiments.studies.ablation.conditions import describe, list_conditions, parse_over
from experiments.tracking.mlflow_store import MlflowRun
from tests.experiments import made_up
from tests.experiments.pictures import is_cut

CLUTTER, ALIKE = "data.synthetic.clutter", "data.synthetic.look_alikes"


def test_values_of_settings_are_combined_and_commas_in_brackets_belong_to_a_value():
    over = parse_over(["chi=on,off", "data.synthetic.darkness=[0, 1],[1]"])
    assert over == {"model.chi": ("on", "off"), "data.synthetic.darkness": ("[0, 1]", "[1]")}
    conditions = list_conditions(over)
    assert len(conditions) == 4
    assert [describe(one) for one in conditions[:2]] == [
        "chi = on, darkness = [0, 1]",
        "chi = on, darkness = [1]",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["data.synthetic.clutter"], "expected 'setting=value,value,...'"),
        (["a=1"], "two or more different values"),
        (["a=1,1"], "two or more different values"),
        (["a=1,"], "two or more different values"),
        (["a=1,2", "a=3,4"], "named once"),
        (["a=1,2", "b=1,2", "c=1,2"], "names 3 settings"),
    ],
)
def test_what_is_no_setting_with_values_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_over(given)


def result_of(condition, gain, note):
    """A study of three rows: one compared with none, one that gains, and one about the text."""
    gained = {"difference": gain, "difference_interval": (gain - 0.01, gain + 0.02), "real": gain > 0.05}
    rows = (
        made_up.table_row("baseline").model_copy(update={"index": "A"}),
        made_up.table_row("SFM", against="baseline", verdict="real", **gained).model_copy(
            update={"index": "B"}
        ),
        made_up.table_row("T alone", against="SFM", difference=-0.2, real=True),
    )
    return AblationResult(
        study=f"demo-table3-{describe(condition)}",
        recipe="demo",
        settings=(),
        feature="U",
        files={},
        mlflow=MlflowRun(uri="sqlite://"),
        tables=("table3",),
        titles={"table3": "Table 3"},
        seeds=(0,),
        epoch="last",
        rows=rows,
        notes=("said of all", note),
        full={"table3": "SFM"},
        table="table3.md",
        wrong={},
    )


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_grid_shows_gains_with_intervals_over_two_settings(tmp_path, drawn):
    over = {CLUTTER: ("0", "0.5", "1"), ALIKE: ("0", "1")}
    results = [
        (each, result_of(each, 0.02 * number, "only here" if number == 3 else "said of all"))
        for number, each in enumerate(list_conditions(over))
    ]
    made = grid.write_grid(Folder(tmp_path), over, results)
    [figure] = drawn
    assert [axes.get_title() for axes in figure.axes] == [f"{ALIKE} = 0", f"{ALIKE} = 1"]
    for panel, axes in enumerate(figure.axes):
        curve = next(line for line in axes.lines if line.get_label() == "SFM minus baseline")
        assert curve.get_ydata() == pytest.approx([2 * number for number in (panel, panel + 2, panel + 4)])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.5", "1"]
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        filled = [round(line.get_xdata()[0]) for line in marks if line.get_markerfacecolor() != "white"]
        assert filled == [place for place in range(3) if panel + 2 * place > 2]
        assert not any("T alone" in line.get_label() for line in axes.lines)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "grids" / made.name / "table3.csv").read_text())))
    assert len(rows) == 6 * 3
    assert [rows[3 * n][CLUTTER] for n in range(6)] == ["0", "0", "0.5", "0.5", "1", "1"]
    text = (tmp_path / "grids" / made.name / "table3.md").read_text()
    assert "| clutter = 0.5, look_alikes = 1 | 50.0 | 50.0<br>+6.0 (+5.0 to +8.0), real |" in text
    assert text.count("said of all") == 1
    assert "- clutter = 0.5, look_alikes = 1: only here" in text


def test_what_stands_beside_the_axes_fits_into_the_picture(tmp_path):
    title = "Table 3 of the paper (Modules), benchmark-vehicle"
    over = {CLUTTER: ("0", "1")}
    results = [
        (each, result_of(each, 0.1, "").model_copy(update={"titles": {"table3": title}}))
        for each in list_conditions(over)
    ]
    made = grid.write_grid(Folder(tmp_path), over, results)
    assert not is_cut((tmp_path / "grids" / made.name / "table3.png").read_bytes())


def test_table_is_made_for_each_condition_once_all_are_known_to_be_possible(monkeypatch, tmp_path, capsys):
    asked = []

    def run(plan, options):
        asked.append(plan.settings)
        return result_of({CLUTTER: plan.settings[-1].partition("=")[2]}, 0.1, "")

    monkeypatch.setattr(ablate, "run_ablation", run)
    arguments = ["--table", "3", "--workspace", str(tmp_path), "--json"]
    assert ablate.main([*arguments, "--over", f"{CLUTTER}=0,0.5,7"]) == 2
    assert "clutter=7" in capsys.readouterr().err
    assert asked == []
    assert ablate.main([*arguments, "--over", f"{CLUTTER}=0,0.5,1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [cell["condition"] for cell in printed["cells"]] == [{CLUTTER: v} for v in ("0", "0.5", "1")]
    assert [settings[-1] for settings in asked] == [f"{CLUTTER}={v}" for v in ("0", "0.5", "1")]
    assert all(one != other for one, other in pairwise(asked))
    assert ablate.main([*arguments[:-1], "--over", f"{CLUTTER}=0,1"]) == 0
    assert "clutter = 1" in capsys.readouterr().out
