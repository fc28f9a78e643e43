"""A measurement that every model passes is refused or said."""

from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data_catalog.checks.data_checks import CheckSettings, run_checks
from data_catalog.checks.findings import Finding, Findings
from data_catalog.checks.measurement_checks import JunkRule, check_measurement
from data_catalog.checks.newest_tables import find_newest_tables
from data_catalog.samples.ingestion import IngestSettings, ingest
from stmi.retrieval.metrics import RetrievalSet, evaluate
from tests.data_catalog.folders import FOLDERS, MODALITY_FOLDERS


def samples(identities: int, cameras: int = 2, each: int = 1, **columns: Any) -> pd.DataFrame:
    """Queries that are the gallery, as in RGBNT201."""
    rows = [(i, c) for i in range(identities) for c in range(cameras) for _ in range(each)]
    frame = pd.DataFrame(rows, columns=["identity", "camera_id"])
    frame["sample_id"] = [f"test/{number}" for number in range(len(frame))]
    return frame.assign(**{"scene_id": -1, "is_query": True, "is_gallery": True} | columns)


def check(
    rows: pd.DataFrame, junk: JunkRule = "camera", split: str = "test"
) -> dict[str, tuple[str, Finding]]:
    findings = Findings()
    check_measurement(split, rows, junk, findings)
    found = {finding.check: ("error", finding) for finding in findings.errors}
    return found | {finding.check: ("warning", finding) for finding in findings.warnings}


def test_sound_measurement_has_no_finding() -> None:
    assert check(samples(identities=12).assign(digest=[f"{i}" for i in range(24)])) == {}


def test_gallery_of_one_identity_is_refused_because_random_features_have_100_percent(
    rng: np.random.Generator,
) -> None:
    rows = samples(identities=1, cameras=3, each=4)
    features = rng.normal(size=(len(rows), 8)).astype(np.float32)
    both = RetrievalSet(features, rows.identity.to_numpy(), rows.camera_id.to_numpy())
    assert evaluate(both, both).mean_average_precision == 1.0
    [(severity, finding)] = check(rows).values()
    assert (severity, finding.check) == ("error", "nothing_wrong_to_retrieve")
    assert "the gallery of split 'test' holds one identity, 0," in finding.message
    assert check(rows, split="val")[finding.check][0] == "warning"


def test_other_identities_among_the_queries_alone_do_not_help() -> None:
    rows = samples(identities=3, cameras=3)
    rows["is_gallery"] = rows.identity == 1
    found = check(rows)
    assert found["nothing_wrong_to_retrieve"][0] == "error"
    assert found["query_without_match"][0] == "warning"


def test_ranks_that_random_features_reach_for_certain_are_named(rng: np.random.Generator) -> None:
    for identities, ranks in ((2, (5, 10)), (5, (10,)), (12, ())):
        rows = samples(identities, cameras=2)
        features = rng.normal(size=(len(rows), 8)).astype(np.float32)
        both = RetrievalSet(features, rows.identity.to_numpy(), rows.camera_id.to_numpy())
        curve = evaluate(both, both).cmc
        found = check(rows)
        for rank in (5, 10):
            named = f"rank {rank} counts {len(rows)}"
            assert (named in found["small_gallery"][1].message if found else False) == (rank in ranks)
            assert rank not in ranks or curve[min(rank, len(curve)) - 1] == 1.0


def test_one_camera_leaves_no_match_or_is_said_where_scenes_decide() -> None:
    rows = samples(identities=12, cameras=1, each=2)
    assert check(rows)["query_without_match"][0] == "error"
    rows["scene_id"] = np.arange(len(rows))
    [(severity, finding)] = check(rows, "scene").values()
    assert (severity, finding.check) == ("warning", "one_camera")


def test_queries_whose_files_are_in_the_gallery_under_another_camera_are_named() -> None:
    rows = samples(identities=12)
    rows["digest"] = [f"{number}" for number in range(len(rows))]
    rows.loc[3, "digest"] = rows.digest[2]
    severity, finding = check(rows)["query_in_gallery"]
    assert (severity, finding.rows) == ("warning", ("test/2", "test/3"))
    rows["digest"] = rows.identity.astype(str)
    assert check(rows)["query_in_gallery"][0] == "error"
    # A query that is its own gallery sample is junk, and no fault.
    rows["digest"] = [f"{number}" for number in range(len(rows))]
    assert "query_in_gallery" not in check(rows)


def report(source: Path, catalog: Path, dataset: str, **settings: Any) -> dict[str, tuple[str, Finding]]:
    ingest(source / "RGBNT201", catalog, dataset, IngestSettings(**settings))
    made = run_checks(find_newest_tables(catalog, dataset), CheckSettings(images=False))
    found = {finding.check: ("error", finding) for finding in made.errors}
    return found | {finding.check: ("warning", finding) for finding in made.warnings}


@pytest.fixture
def half(source: Path, tmp_path: Path) -> Path:
    """The small data set without the second test identity, and with a third camera in `test`."""
    copied = Path(copytree(source, tmp_path / "half"))
    for folder in MODALITY_FOLDERS:
        for path in (copied / "RGBNT201" / FOLDERS["test"] / folder).glob("*"):
            if path.name.startswith("000022"):
                path.unlink()
            elif "_cam2_" in path.name:
                path.rename(path.with_name(path.name.replace("_cam2_", "_cam3_")))
    return copied


def test_checks_of_a_half_copied_data_set_say_all_that_is_degenerate(half: Path, tmp_path: Path) -> None:
    found = report(half, tmp_path / "catalog", "rgbnt201")
    assert found["nothing_wrong_to_retrieve"][0] == "error"
    severity, finding = found["differs_from_card"]
    assert severity == "warning"
    assert "test samples 4 (836), test identities 1 (30)" in finding.message
    assert "cameras" not in finding.message
    severity, finding = found["untrained_camera"]
    assert severity == "warning"
    assert "2 samples of split 'test' are of cameras that no training sample is of (3)" in (finding.message)


def test_held_out_identities_are_no_difference_from_the_card(source: Path, tmp_path: Path) -> None:
    copied = Path(copytree(source, tmp_path / "copy"))
    rmtree(copied / "RGBNT201" / "val")
    found = report(copied, tmp_path / "catalog", "rgbnt201", validation_identities=1)
    message = found["differs_from_card"][1].message
    assert "train samples 12 (3951), train identities 3 (171)" in message
    assert "val" not in message


def test_the_rule_of_samples_without_cameras_is_none_and_said() -> None:
    rows = samples(identities=12, each=2).assign(camera_id=-1, digest=[f"{i}" for i in range(48)])
    [(severity, finding)] = check(rows).values()
    assert (severity, finding.check) == ("warning", "no_junk_rule")
    assert "split 'test': the junk rule is none, so of a query's identity only the query" in finding.message
    pairs = rows.assign(camera_id=0, digest="")[rows.index % 2 == 0]
    assert set(check(pairs, "none")) == {"no_junk_rule", "query_in_gallery"}
    # A query is no match of its own.
    rows = samples(identities=12, cameras=1).assign(camera_id=-1)
    severity, finding = check(rows)["query_without_match"]
    assert severity == "error"
    assert "12 of 12 queries of split 'test' have no match in the gallery (test/0" in finding.message
