import io
import subprocess
import sys

from data_catalog import progress
from data_catalog.progress import open_progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with open_progress("training", "epoch", 4) as show:
        show(2, "loss=0.5")
    drawn = sys.stderr.getvalue()
    assert "\r" in drawn
    assert drawn.count("\n") == 1
    assert "2/4" in drawn


def test_step_of_less_than_a_minute_has_two_lines_in_a_file(capsys):
    with progress_bar("masks", "shard") as report:
        for done in range(1001):
            report(done, 1000)
    written = capsys.readouterr().err
    first, last = written.splitlines()
    assert first == "masks: 0/1000 shards"
    assert last.startswith("masks: 1000/1000 shards, 00:00 elapsed, 00:00 left")
    assert "\r" not in written


def test_long_step_has_a_line_for_each_pause(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with open_progress("masks", "shard", 3) as show:
        for done in (1, 1, 2, 2, 2, 3):
            show(done)
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"masks: {done}/3 shards" for done in range(4)
    ]


def test_each_epoch_has_a_line_with_its_text_and_title(capsys):
    with open_progress("starting workers", "epoch", 3, 1, line_each=True) as show:
        for done in (1, 2, 2, 3):
            show(done, f"loss={done}", "training")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "starting workers: 1/3 epochs"
    assert [line.rpartition(", ")[2] for line in lines[1:]] == ["loss=2", "loss=3"]
    assert all(line.startswith("training: ") and " left, " in line for line in lines[1:])


def test_time_left_is_what_the_rest_takes_at_the_rate_of_this_start(capsys, monkeypatch):
    times = iter([100.0, 100.0, 130.0, 130.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with open_progress("training", "epoch", 8, 2, line_each=True) as show:
        # Three epochs in 30 s, three to go.
        show(5)
    assert capsys.readouterr().err.splitlines()[1] == "training: 5/8 epochs, 00:30 elapsed, 00:30 left"


def test_finished_step_prints_nothing(capsys):
    with progress_bar("masks", "shard") as report:
        report(3, 3)
    assert capsys.readouterr().err == ""


def test_command_of_the_catalog_writes_two_lines_to_a_file(tmp_path):
    settings = ("train_identities=12", "test_identities=8", "validation_identities=8")
    with (tmp_path / "log").open("w") as file:
        subprocess.run(
            [
                *(sys.executable, "-m", "data_catalog", "synthesize", "--out", tmp_path / "data"),
                *(part for setting in settings for part in ("--set", setting)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=file,
            check=True,
            timeout=120,
        )
    first, last = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("synthesize: ")
    done, total = last.partition(" samples, ")[0].removeprefix("synthesize: ").split("/")
    assert done == total
