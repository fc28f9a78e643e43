"""A study's page and an ablation in MLflow's UI, in a real browser."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect, sync_playwright

from experiments.reports.recorded_study import read_study
from experiments.run.run_folder import RunFolder
from experiments.tracking.mlflow_store import local_store
from tests.mlflow_server import free_port, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; install it with: apt-get install chromium"
)
PHONE = {"width": 390, "height": 844}
SCREEN = {"width": 1400, "height": 1000}
PAPER = {"width": 1062, "height": 733}
"""A4 in landscape without its margins, in pixels of CSS."""
SHOWN_WITHIN_MILLISECONDS = 30_000


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=SHOWN_WITHIN_MILLISECONDS)
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers rarely have; the browser opens our pages only.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, report):
    """Opens the page at a size; returns it with its messages and its requests."""
    contexts = []

    def open_at(size, **options):
        contexts.append(browser.new_context(viewport=size, **options))
        page = contexts[-1].new_page()
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(report["page"]).as_uri())
        return page, messages, requests

    yield open_at
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def server(study, workspace, tmp_path_factory):
    """Address of an MLflow server on the store to which the study was logged."""
    folder = tmp_path_factory.mktemp("server")
    with serving(local_store(workspace), folder, free_port()) as address:
        yield address


def test_page_needs_no_other_file(opened, report):
    page, messages, requests = opened(SCREEN)
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [Path(report["page"]).as_uri()]
    widths = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) == len(report["pictures"])
    assert all(widths)


def test_number_links_to_its_runs(opened, study):
    page, _, _ = opened(SCREEN)
    full = study["rows"][3]
    number = page.locator("#table3-3 td").nth(1)
    assert number.inner_text().startswith(f"{100 * full['mAP']['mean']:.1f} ±")
    number.get_by_role("link").click()
    runs = page.locator("#from-table3-3:target")
    expect(runs).to_be_in_viewport()
    for name in full["runs"].values():
        assert name in runs.inner_text()
    runs.get_by_role("link").last.click()
    expect(page.locator(f"#run-{full['runs']['1']}:target")).to_be_in_viewport()


def test_page_fits_a_phone_and_wide_parts_scroll_inside_it(opened):
    page, messages, _ = opened(PHONE, has_touch=True, is_mobile=True)
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    table = page.locator("#table3 .scroll")
    assert table.evaluate("part => part.scrollWidth > part.clientWidth")
    table.evaluate("part => { part.scrollLeft = part.scrollWidth }")
    # After scrolling to the last column, the name of the row is visible and does not cover that column.
    name, last = (
        part.bounding_box()
        for part in (page.locator("#table3-0 td").first, table.get_by_role("columnheader", name="rank 1"))
    )
    assert name["x"] >= 0
    assert name["x"] + name["width"] <= last["x"]
    # Positions are fractions of a pixel.
    assert last["x"] + last["width"] <= PHONE["width"] + 1


@pytest.mark.parametrize(("scheme", "text", "back"), [("light", 27, 255), ("dark", 227, 20)])
def test_page_follows_the_colour_scheme_of_the_reader(opened, scheme, text, back):
    page, _, _ = opened(SCREEN, color_scheme=scheme)
    style = "getComputedStyle(document.body)"
    assert page.evaluate(f"{style}.color").startswith(f"rgb({text},")
    assert page.evaluate(f"{style}.backgroundColor").startswith(f"rgb({back},")


def test_nothing_scrolls_sideways_at_1200_pixels(opened):
    page, _, _ = opened({"width": 1200, "height": 900})
    parts = page.locator(".scroll").all()
    assert len(parts) > 10
    for part in parts:
        assert part.evaluate("part => part.scrollWidth <= part.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    # A number and its spread stand in one line.
    spread = page.locator("#table3-3 td").nth(1)
    assert spread.evaluate("cell => cell.firstChild.getClientRects().length") == 1


def test_page_is_printed_completely(opened):
    page, _, _ = opened(PAPER)
    page.emulate_media(media="print")
    parts = page.locator("main table, main img").all()
    assert len(parts) > 10
    for part in parts:
        assert part.evaluate("part => part.getBoundingClientRect().right") <= PAPER["width"]


def test_printed_pictures_keep_their_size_as_far_as_the_paper_allows(opened):
    page, _, _ = opened(PAPER)
    page.emulate_media(media="print")
    scale = """picture => Math.min(
        picture.clientWidth / picture.width_on_screen,
        picture.clientHeight / picture.width_on_screen * picture.naturalWidth / picture.naturalHeight)"""
    scale = scale.replace("picture.width_on_screen", 'picture.getAttribute("width")')
    # Text of 8 points is then printed with 7 or more.
    assert min(picture.evaluate(scale) for picture in page.locator("main img").all()) >= 7 / 8


def test_page_is_printed_on_landscape_paper(opened):
    page, _, _ = opened(PAPER)
    page_box = re.search(rb"/MediaBox *\[([0-9. ]+)\]", page.pdf(prefer_css_page_size=True))
    assert page_box is not None
    _, _, width, height = map(float, page_box.group(1).split())
    assert (round(width), round(height)) == (842, 595)  # A4, in points


def test_navigation_is_not_printed(opened):
    page, _, _ = opened(PAPER)
    page.emulate_media(media="print")
    expect(page.get_by_role("navigation")).to_be_hidden()


def test_mlflows_comparison_names_the_rows_and_shows_the_differences(browser, server, study, workspace):
    rows = {f"table3 {row['index']} {row['name']}, seed 0": row["runs"]["0"] for row in study["rows"][:4]}
    recorded = {run.name: run for run in read_study(local_store(workspace), study["study"]).runs}
    chosen, experiments = [recorded[name].mlflow.run_id for name in rows], [study["mlflow"]["experiment_id"]]
    page = browser.new_page(viewport={"width": 2000, "height": 1000})
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(
        f"{server}/#/compare-runs?runs={quote(json.dumps(chosen))}&experiments={quote(json.dumps(experiments))}"
    )
    for name in rows:
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    parameters = page.get_by_role("row").filter(has_text="batch.size")
    expect(parameters).to_be_attached()
    for switch in page.get_by_role("switch", name="Show diff only").all():
        switch.check()
    expect(parameters).to_have_count(0)
    shown = [line.split("\t") for line in page.locator("body").inner_text().split("\n")]
    differing = {name: values for name, *values in shown}
    assert differing["model.sfm.enabled"] == ["False", "True", "True", "True"]
    assert differing["model.str.enabled"] == ["False", "False", "True", "True"]
    # The UI renders only the visible metrics: names in one grid, values in another.
    names, values = (grid.inner_text().split("\n") for grid in page.locator(".ReactVirtualized__Grid").all())
    g_values = values[4 * names.index("test/G/mAP") :][:4]
    results = [RunFolder.open(workspace / "train" / run).result for run in rows.values()]
    assert [float(value) for value in g_values] == pytest.approx(
        [result.metrics["G"].mean_average_precision for result in results], abs=1e-3
    )
    assert [url for url in requests if not url.startswith((server, "data:", "blob:"))] == []
    page.close()


def test_mlflows_experiment_page_shows_the_study_and_its_runs(browser, server, study):
    page = browser.new_page(viewport=SCREEN)
    page.goto(f"{server}/#/experiments/{study['mlflow']['experiment_id']}/runs")
    parent = page.get_by_role("row").filter(has_text=study["study"])
    expect(parent).to_be_visible()
    runs = page.get_by_text(re.compile("^table3 . .+, seed [01]$"))
    assert runs.count() == 0
    parent.get_by_role("button").first.click()
    expect(runs.first).to_be_visible()
    names = {f"table3 {row['index']} {row['name']}, seed {seed}" for row in study["rows"] for seed in (0, 1)}
    assert set(runs.all_inner_texts()) <= names
    page.close()
