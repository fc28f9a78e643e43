"""From a small folder in the published layout to the paper's tables, with a tiny CLIP."""

import json
import shutil

import pytest

from experiments import reproduce
from experiments.reproducing import table_origins
from experiments.reproducing.table_origins import CaptionOrigin, MaskOrigin, parse_captions, parse_masks
from experiments.studies.ablation.ablation import AblationStudy
from experiments.tracking.journal_folder import JournalFolder
from tests.data_catalog import folders
from tests.mlflow_server import free_port

SETTINGS = (
    "model.image.height=32",
    "model.image.width=16",
    "model.str.heads=2",
    "batch.size=4",
    "batch.samples_per_identity=2",
    "train.epochs=1",
)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """A folder as RGBNT201 is published, without validation identities, and caption files."""
    folder = tmp_path_factory.mktemp("downloads")
    folders.write_data_set(folder)
    shutil.rmtree(folder / "RGBNT201" / "val")
    (folder / "captions").mkdir()
    for split in ("train", "test"):
        items = [{"item": f"{name}.jpg", "description": f"a person, {name}"} for name in folders.names(split)]
        (folder / "captions" / f"{split}.json").write_text(json.dumps(items))
    return folder


@pytest.fixture
def call(downloads, clip, tmp_path, capsys):
    """Runs the script in a workspace of its own; gives status, what it prints, and its messages."""

    def run(*more, masks="grabcut", captions="none", source=downloads / "RGBNT201", clip_folder=clip):
        asked = ["rgbnt201", "--source", source, "--clip", clip_folder, "--masks", masks]
        asked += ["--captions", captions, "--workspace", tmp_path / "runs", "--seeds", "1", "--tables", "4"]
        asked += [part for setting in SETTINGS for part in ("--set", setting)]
        status = reproduce.main([*map(str, asked), *more])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_interrupted_anywhere_it_goes_on_to_tables_and_a_page(
    ray_session, call, downloads, tmp_path, monkeypatch, capsys
):
    captions = f"files:{downloads / 'captions'}"
    for owner, name in ((CaptionOrigin, "make"), (AblationStudy, "train")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupt)
            with pytest.raises(SystemExit):
                call(captions=captions)
        assert "run the same command again" in capsys.readouterr().err
    status, out, err = call("--json", captions=captions)
    assert status == 0, err
    for step in ("ingest", "masks", "captions", "text-features", "view"):
        (line,) = (line for line in err.splitlines() if f" s] {step} " in line)
        assert line.endswith("(as before) "), line
    result = json.loads(out)
    rows = [row["name"] for row in result["study"]["rows"]]
    assert rows[:6] == [
        "without CHI",
        "MLP in place of CHI",
        "self-attention in place of CHI",
        "CHI (full model)",
        "rule of the released code",
        "each node with its 2 nearest",
    ]
    assert result["study"]["wrong"] == {}
    page = (tmp_path / "runs" / "studies" / result["study"]["study"] / "report.html").read_text()
    # The paper's mAP of the full model.
    assert "81.2" in page
    runs = [JournalFolder(path) for path in (tmp_path / "runs" / "train").iterdir() if path.is_dir()]
    assert len(runs) == 7
    sizes = [run.journal.size for run in runs]
    status, out, _ = call("--json", captions=captions)
    assert status == 0
    assert json.loads(out)["study"]["rows"] == result["study"]["rows"]
    assert [run.journal.size for run in runs] == sizes
    status, out, _ = call("--plan", "--json", captions=captions)
    assert status == 0
    found = json.loads(out)
    assert [run["state"] for run in found["study"]["runs"]] == ["finished"] * 7
    assert (found["masks"], found["captions"], found["study"]["warnings"]) == (None, None, [])


def test_a_plan_says_what_is_missing_and_what_it_costs_and_makes_nothing(call, tmp_path):
    endpoint = f"llm:http://127.0.0.1:{free_port()}/v1,gpt"
    found, out, _ = call(
        *("--plan", "--json", "--price", "3"),
        *("--usd-per-million-input", "2", "--usd-per-million-output", "8"),
        captions=endpoint,
    )
    told = json.loads(out)
    assert found == 1
    (error,) = told["errors"]
    assert "the endpoint does not answer" in error
    assert told["images"] == len(folders.names("train")) + len(folders.names("test")) == 20
    masks, answers = told["masks"], told["captions"]
    assert masks["seconds_per_sample"] > 0
    hours = 20 * masks["seconds_per_sample"] / masks["processes"] / 3600
    assert masks["hours"] == pytest.approx(hours)
    # Four questions and the choice for each sample.
    assert answers["questions"] == 5 * 20
    assert answers["cost_usd"] == pytest.approx(
        (2 * answers["prompt_tokens"] + 8 * answers["completion_tokens"]) / 1e6
    )
    assert {table["command"] for table in told["study"]["tables"]} == {"the same command without --plan"}
    assert all(time["device_hours"] > 0 and time["price"] > 0 for time in told["study"]["times"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("captions", "rows"), [("none", 5), ("files:captions", 8)])
def test_rows_about_text_are_left_out_without_captions(captions, rows):
    asked = ["msvr310", "--source", ".", "--clip", "gone", "--masks", "grabcut", "--captions", captions]
    given = reproduce.parser().parse_args([*asked, "--recipe", "msvr310-released", "--tables", "4"])
    plan = reproduce.specify_tables(given)
    ((_, found),) = plan.rows
    assert len(found) == rows
    assert {config.model.text.enabled for config in plan.configs} == ({False} if rows == 5 else {True, False})
    # That of the recipe is reported, unless it needs the text.
    assert plan.configs[0].report.feature == ("G" if rows == 5 else "GTTT")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "gone"}, "--source gone: "),
        ({"source": "."}, "`python -m data_catalog ingest --help`"),
        ({"clip_folder": "gone"}, "--clip gone: there is no such folder; make it"),
        ({"masks": "sam2:gone.pt"}, "gone.pt"),
        ({"masks": "sam2:text.pt"}, "text.pt"),
        ({"masks": "files:gone"}, "--masks files:gone: there is no such folder"),
        ({"captions": "files:gone"}, "--captions files:gone: there is no such folder"),
        ({"captions": "llm:http://127.0.0.1:9/v1,gpt"}, "the endpoint does not answer"),
        ({"captions": "llm:nowhere,gpt"}, "'nowhere' is not a URL"),
    ],
)
def test_what_is_missing_is_named_in_one_line_before_any_work(call, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("no checkpoint")
    status, out, err = call(**given)
    (line,) = err.splitlines()
    assert (status, out) == (2, "")
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recipe", "msvr310-paper"), "trains on data set 'msvr310', not on 'rgbnt201'"),
        (("--usd-per-million-input", "1"), "belong to --captions llm"),
        (("--budget-usd", "1"), "belong to --captions llm"),
        (("--set", "text=on"), "--set text=on: --captions and --clip decide that"),
        (("--seeds", "0"), "--seeds=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(call, more, message):
    status, _, err = call(*more)
    assert status == 2
    assert message in err


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        (("nan", "1"), "--usd-per-million-input=nan: expected a number of US dollars from 0 on"),
        (("1", "-1"), "--usd-per-million-output=-1.0: expected a number of US dollars from 0 on"),
        (("1", "1", "--budget-usd", "0"), "--budget-usd=0.0: expected a number of US dollars above 0"),
    ],
)
def test_prices_that_nobody_pays_are_refused(call, prices, message):
    given = ("--usd-per-million-input", prices[0], "--usd-per-million-output", *prices[1:])
    status, _, err = call(*given, captions="llm:http://127.0.0.1:9/v1,some-model")
    assert (status, err.count("\n")) == (2, 1)
    assert message in err


@pytest.mark.parametrize("option", ["--masks", "--captions"])
@pytest.mark.parametrize("text", ["sam3:x", "sam2:", "files:", "llm:http://host/v1", "", "nothing"])
def test_an_unknown_origin_is_refused_with_those_that_there_are(option, text, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["rgbnt201", option, text])
    expected = table_origins.MASKS if option == "--masks" else table_origins.CAPTIONS
    assert f"expected {expected}" in " ".join(capsys.readouterr().err.split())


def test_origins_are_read_as_they_are_written(tmp_path):
    assert parse_masks("sam2:w,x.pt") == MaskOrigin("sam2", table_origins.Path("w,x.pt"))
    assert parse_masks("sam2:w.pt,sam2.1_hiera_t").model == "sam2.1_hiera_t"
    asked = parse_captions("llm:http://host:8000/v1,org/model")
    assert (asked.location, asked.model) == ("http://host:8000/v1", "org/model")
    files = parse_captions("files:a,b,join")
    assert (files.location, files.choice) == ("a,b", "join")
    assert parse_captions("files:a,b").location == "a,b"
