import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_catalog.errors import CatalogError
from data_catalog.formats import Listing, SourceFormat, SourceSample

SAMPLE = SourceSample(
    sample_id="train/a",
    split="train",
    identity=1,
    camera_id=0,
    scene_id=-1,
    is_query=False,
    is_gallery=False,
    files={"RGB": "a.jpg", "NIR": "b.jpg", "TIR": "c.jpg"},
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, "split is 'validation', expected one of split_folders, here train"),
        ({"sample_id": "a"}, "sample_id must begin with the split, expected train/NAME"),
        ({"files": {"IR": "a.jpg"}}, "files has the keys IR, expected RGB, NIR, TIR, or SIDE_BY_SIDE alone"),
        ({"files": {}}, "files has the keys -, expected"),
        ({"files": {"RGB": Path("a.jpg")}}, "files holds a path that is no str"),
        ({"identity": "0001"}, "identity is '0001', expected an integer of at least 0"),
        ({"camera_id": -2}, "camera_id is -2, expected an integer of at least -1"),
        ({"scene_id": -2}, "scene_id is -2, expected an integer of at least -1"),
    ],
)
def test_sample_of_a_layout_of_ones_own_is_checked(change: dict[str, Any], message: str) -> None:
    sample = replace(SAMPLE, **change)
    layout = SourceFormat("mine", {"train": "train"}, lambda source: Listing(source, (sample,), ()))
    with pytest.raises(CatalogError, match=f"^format mine: sample .*{re.escape(message)}"):
        layout.read(Path("data"))


def test_listing_of_a_layout_of_ones_own_is_sorted_and_checked() -> None:
    def read(listed: Any) -> Listing:
        return SourceFormat("mine", {"train": "train"}, lambda source: listed).read(Path("data"))

    last = replace(SAMPLE, sample_id="train/b")
    assert read(Listing(Path("data"), (last, SAMPLE), ())).samples == (SAMPLE, last)
    with pytest.raises(CatalogError, match="sample 'train/a': sample_id is that of another sample"):
        read(Listing(Path("data"), (SAMPLE, last, SAMPLE), ()))
    with pytest.raises(CatalogError, match="source data holds no sample; is it another layout"):
        read(Listing(Path("data"), (), ()))
    with pytest.raises(CatalogError, match="list_samples returned list, expected a Listing"):
        read([SAMPLE])
