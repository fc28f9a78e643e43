from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from data_catalog.views.view_reader import open_view
from experiments import report
from experiments.evaluating import evaluation_target
from experiments.reports import hypergraph_figure
from experiments.reports.hypergraph_figure import ACROSS, TEXT, WITHIN, plot_hypergraphs, sample_incidence

COPIES = (4, 9, 14)


class View:
    """Two samples of one grey."""

    image_size = (8, 4)
    sample_id = ("first", "second")

    def batch(self, rows):
        return SimpleNamespace(pixels=np.full((len(rows), 3, 3, 8, 4), 128, dtype=np.uint8))


def shown(monkeypatch, incidence, text=True, tokens=True, left_out=()):
    """The axes below the images of a picture of hypergraphs."""
    switches = {"text": SimpleNamespace(enabled=text), "str": SimpleNamespace(enabled=tokens)}
    kept = [node for node in range(incidence.shape[1]) if node not in left_out]
    model = SimpleNamespace(incidence=SimpleNamespace(kept=kept))
    target = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(**switches)), model=model)
    monkeypatch.setattr(hypergraph_figure, "sample_incidence", lambda *given: incidence)
    return plot_hypergraphs(target, View(), np.arange(2)).axes[2:]


def test_lines_join_the_nodes_that_meet_and_nodes_that_are_alone_are_hollow(monkeypatch):
    incidence = np.stack([np.eye(15, dtype=bool)] * 2)
    # One direction is enough, as with the nearest nodes.
    incidence[0, 0, 1] = incidence[0, 2, 7] = True
    incidence[1][np.ix_(COPIES, COPIES)] = True
    first, second = shown(monkeypatch, incidence)
    lines = {axes: [line for line in axes.lines if line.get_linestyle() == "-"] for axes in (first, second)}
    assert [to_hex(line.get_color()) for line in lines[first]] == [WITHIN, ACROSS]
    assert [to_hex(line.get_color()) for line in lines[second]] == [TEXT] * 3
    for axes, meeting in ((first, {0, 1, 2, 7}), (second, set(COPIES))):
        marks = [line for line in axes.lines if line.get_linestyle() == "None"]
        assert {n for n, mark in enumerate(marks) if mark.get_markerfacecolor() != "white"} == meeting
        assert {n for n, mark in enumerate(marks) if mark.get_marker() == "s"} == set(COPIES)
    assert first.get_title().startswith("1.1 of 15 nodes")


def test_copies_of_the_text_that_are_left_out_do_not_count(monkeypatch):
    incidence = np.stack([np.eye(15, dtype=bool)] * 2)
    incidence[0, 0, 1] = True
    first, second = shown(monkeypatch, incidence, left_out=COPIES)
    assert first.get_title().startswith("1.1 of 12 nodes")
    assert second.get_title().startswith("1.0 of 12 nodes")


def test_hypergraph_of_many_patches_is_shown_as_its_matrix(monkeypatch):
    incidence = np.stack([np.eye(97, dtype=bool)] * 2)
    first, _ = shown(monkeypatch, incidence, tokens=False)
    assert np.array_equal(np.asarray(first.images[0].get_array()), incidence[0])


def test_report_of_a_run_draws_the_hypergraphs_that_the_run_was_tested_with(trained, tmp_path, capsys):
    target = evaluation_target.load_run(trained["folder"])
    view = open_view(target.table)
    found = sample_incidence(target, view, np.arange(len(view)))
    assert found.sum(axis=1).mean() == pytest.approx(trained["hyperedges"]["test"]["size"])
    assert report.main(["--run", trained["folder"], "--out", str(tmp_path)]) == 0
    assert (tmp_path / "hypergraphs.png").read_bytes().startswith(b"\x89PNG")
    assert "tokens of images are alone in theirs" in capsys.readouterr().out
