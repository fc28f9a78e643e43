"""The web page of a catalog: what it holds, and how it is filtered in a real browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from data_catalog.__main__ import main
from data_catalog.captions.imported_captions import import_captions
from data_catalog.checks.data_checks import run_checks
from data_catalog.checks.newest_tables import find_newest_tables
from data_catalog.masks.segmenters.mask_files import import_masks
from data_catalog.samples.ingestion import IngestSettings, ingest
from data_catalog.tables.table import Table
from tests.data_catalog import folders

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; install it with: apt-get install chromium"
)
BROKEN = "train/000001_cam1_0_00"
NEARLY_EMPTY = "train/000002_cam1_0_00"
EVIL = "test/000021_cam1_0_00"
CAPTION = "</script><script>document.title = 'taken over'</script><b>a person</b>"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A small data set with a broken image, a mask of one pixel, and a caption that looks like a program."""
    source, catalog = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("catalog")
    folders.write_data_set(source)
    folders.image_path(source, BROKEN, 1).write_text("no image")
    mask = np.zeros((folders.HEIGHT, folders.WIDTH), dtype=np.uint8)
    mask[5, 5] = 255
    Image.fromarray(mask).save(folders.true_mask_path(source, NEARLY_EMPTY))
    (source / "captions").mkdir()
    for split in folders.FOLDERS:
        items = [
            {"item": f"{name}.jpg", "description": CAPTION if f"{split}/{name}" == EVIL else f"person {name}"}
            for name in folders.names(split)
        ]
        (source / "captions" / f"{split}.json").write_text(json.dumps(items))
    table = ingest(source / "RGBNT201", catalog, "small", IngestSettings(samples_per_shard=10))
    import_masks(table, source / "true_masks")
    import_captions(table, source / "captions")
    return table


def write(samples: Table, out: Path, *more: str) -> int:
    return main(["sheet", "small", "--catalog", samples.catalog, "--html", str(out), "--json", *more])


@pytest.fixture(scope="module")
def page_file(samples: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "page.html"
    assert write(samples, out) == 0
    return out


def entries(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script id="data" type="application/json">(.*)</script>', page.read_text())
    assert found is not None
    listed: list[dict[str, Any]] = json.loads(found[1])["samples"]
    return listed


def ids(samples: Table) -> list[str]:
    found: list[str] = samples.read(["sample_id"])["sample_id"].to_pylist()
    return found


def test_page_has_every_sample_with_its_three_images_and_what_the_checks_say(
    samples: Table, page_file: Path
) -> None:
    found = entries(page_file)
    assert [entry["id"] for entry in found] == ids(samples)
    report = run_checks(find_newest_tables(samples.catalog, "small"))
    named = {
        sample_id: {f.check for f in (*report.errors, *report.warnings) if sample_id in f.rows}
        for sample_id in ids(samples)
    }
    assert {entry["id"]: set(entry["warnings"]) for entry in found} == named
    assert named[NEARLY_EMPTY]
    for entry in found:
        with Image.open(io.BytesIO(base64.b64decode(entry["image"])), formats=("WEBP",)) as image:
            # Three of 160 x 80 pixels, and what is between them.
            assert image.size == (3 * 80 + 4, 160)
        assert entry["caption"] == (CAPTION if entry["id"] == EVIL else f"person {entry['id'][-16:]}")
        assert entry["camera"] == entry["id"].partition("_cam")[2][0]


def test_held_out_samples_are_of_the_split_that_they_belong_to(samples: Table, tmp_path: Path) -> None:
    source = tmp_path / "RGBNT201"
    shutil.copytree(samples.manifest.created["source"], source, ignore=shutil.ignore_patterns("val"))
    settings = IngestSettings(validation_identities=1)
    table = ingest(source, tmp_path / "catalog", "small", settings)
    split_of = dict(zip(ids(table), table.read(["split"])["split"].to_pylist(), strict=True))
    assert write(table, tmp_path / "page.html") == 0
    found = {entry["id"]: entry["split"] for entry in entries(tmp_path / "page.html")}
    assert found == split_of
    assert any(split == "val" and name.startswith("train/") for name, split in found.items())


def test_limit_takes_a_choice_and_the_result_says_so(
    samples: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(samples, tmp_path / "page.html", "--limit", "5", "--split", "train") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["shown"], told["samples"], told["quarantined"]) == (5, 27, 1)
    assert told["bytes"] == (tmp_path / "page.html").stat().st_size
    found = entries(tmp_path / "page.html")
    assert len(found) == 5
    assert {entry["split"] for entry in found} == {"train"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--limit", "0"), "count"),
        (("--count", "3"), "--count is an option of --out, not of --html"),
        (("--patch-size", "8"), "--patch-size is an option of --out"),
        (("--identity", "99"), "no sample of"),
        (("--ids", "test/nobody"), "'test/nobody' is not in"),
        (("--ids", EVIL, "--limit", "3"), "leave out --limit"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(
    samples: Table, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert write(samples, tmp_path / "page.html", *more) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_limit_belongs_to_a_page(samples: Table, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["sheet", "small", "--catalog", samples.catalog, "--out", "x.png", "--limit", "3"]
    assert main(asked) == 2
    assert "--limit is an option of --html, not of --out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers rarely have; the browser opens our pages only.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


Open = Callable[[Path], tuple[Page, list[str], list[str]]]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a page; returns it with its messages and its requests."""
    contexts = []

    def open_page(file: Path) -> tuple[Page, list[str], list[str]]:
        contexts.append(browser.new_context(viewport={"width": 900, "height": 500}))
        page = contexts[-1].new_page()
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page, messages, requests

    yield open_page
    for context in contexts:
        context.close()


def shown(page: Page) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('article')].map(card => card.id)")
    return found


@needs_browser
def test_page_loads_nothing_and_a_caption_is_text_alone(page_file: Path, opened: Open) -> None:
    page, messages, requests = opened(page_file)
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.title() == "small: 27 of 27 samples"
    expect(page.locator(f"[id='{EVIL}']")).to_contain_text(CAPTION)
    assert page.locator("article b").count() == 0
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 200)")


@needs_browser
def test_filters_show_the_samples_that_they_name(samples: Table, page_file: Path, opened: Open) -> None:
    page, _, _ = opened(page_file)
    everything = ids(samples)
    assert shown(page) == everything
    page.select_option("#split", "test")
    assert shown(page) == [one for one in everything if one.startswith("test/")]
    page.select_option("#camera", "2")
    assert shown(page) == [one for one in everything if one.startswith("test/") and "_cam2_" in one]
    page.fill("#identity", "21")
    assert shown(page) == [one for one in everything if one.startswith("test/000021_cam2_")]
    page.select_option("#split", "")
    page.select_option("#camera", "")
    page.fill("#identity", "2-11")
    assert shown(page) == [one for one in everything if 2 <= int(one.partition("/")[2][:6]) <= 11]
    page.fill("#identity", "")
    page.fill("#text", "000003_CAM1")
    assert shown(page) == [one for one in everything if "/000003_cam1" in one]
    page.fill("#text", "")
    page.select_option("#order", "foreground")
    assert shown(page)[0] == NEARLY_EMPTY
    assert sorted(shown(page)) == everything
    assert page.locator("#count").inner_text() == "27 of 27"


@needs_browser
def test_quarantined_files_and_samples_with_a_warning_are_filtered(page_file: Path, opened: Open) -> None:
    page, _, _ = opened(page_file)
    for check in {check for entry in entries(page_file) for check in entry["warnings"]}:
        page.select_option("#state", f"warned {check}")
        assert shown(page) == [entry["id"] for entry in entries(page_file) if check in entry["warnings"]]
    page.select_option("#state", "warned")
    assert shown(page) == [entry["id"] for entry in entries(page_file) if entry["warnings"]]
    page.select_option("#state", "quarantined")
    card = page.locator("article")
    assert card.count() == 1
    assert f"{BROKEN.partition('/')[2]}.jpg" in card.inner_text()
    assert page.locator("#count").inner_text() == "1 of 1"


@needs_browser
def test_cards_are_made_when_they_are_scrolled_to(page_file: Path, tmp_path: Path, opened: Open) -> None:
    few = tmp_path / "few.html"
    few.write_text(
        page_file.read_text().replace("AT_ONCE = 60", "AT_ONCE = 3").replace('"800px"', '"0px"'),
        encoding="utf-8",
    )
    page, messages, _ = opened(few)
    page.wait_for_function("document.querySelectorAll('article').length >= 3")
    page.wait_for_timeout(200)
    assert len(shown(page)) < 27
    for _ in range(27):
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(50)
    page.wait_for_function("document.querySelectorAll('article').length === 27")
    assert messages == []
