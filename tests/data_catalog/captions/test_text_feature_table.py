import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_catalog.captions.text_feature_table import TextFeaturesMaker, make_text_features
from data_catalog.errors import CatalogError
from stmi.clip.loading import load_clip
from tests import tiny_clip
from tests.data_catalog.folders import FakeTower


def test_feature_is_that_of_the_caption(built: Any) -> None:
    captions = built.captions.read(["sample_index", "caption"]).to_pylist()
    rows = built.text_features.read().to_pylist()
    assert [row["sample_index"] for row in rows] == [row["sample_index"] for row in captions]
    for row, caption in zip(rows, captions, strict=True):
        expected = list(hashlib.sha256(caption["caption"].encode()).digest()[:6])
        assert np.allclose(np.array(row["text_feature"]) * 255, expected, atol=1e-4)


def test_table_says_what_it_was_made_from(built: Any) -> None:
    table = built.text_features
    assert table.manifest.inputs == {
        "samples": built.samples.digest,
        "captions": built.captions.digest,
        "clip": FakeTower.digest,
    }
    assert table.statistics["text_dim"] == 6
    assert str(table.read_shard(0).schema.field("text_feature").type).endswith("[6]")
    captions = built.captions.read(["caption"])["caption"].to_pylist()
    assert table.statistics["distinct"] == len(set(captions)) < len(captions)


class BrokenTower(FakeTower):
    digest = "broken"

    def encode_text(self, tokens: Any) -> Any:
        return super().encode_text(tokens) / 0


def test_features_that_are_not_finite_are_refused(built: Any) -> None:
    maker = TextFeaturesMaker(built.captions, "broken", batch_size=8, load=lambda source: BrokenTower())
    maker.prepare()
    with pytest.raises(CatalogError, match="not finite; its weights are damaged"):
        maker.make(0)


def test_missing_clip_is_named_once(built: Any, tmp_path: Path) -> None:
    for source, named in (
        (tmp_path, tmp_path / "open_clip_config.json"),
        ("no/such", "clip source 'no/such'"),
    ):
        with pytest.raises(CatalogError) as refused:
            make_text_features(built.captions, source)
        assert str(refused.value).startswith(str(named))
        assert str(refused.value).count(str(source)) == 1


def test_real_text_tower_gives_what_it_gives_outside_the_catalog(
    built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_clip(tiny_clip.write(tmp_path / "clip"))
    table = make_text_features(built.captions, tmp_path / "clip")
    assert table.manifest.inputs["clip"] == clip.digest
    # Actors have another working directory.
    monkeypatch.chdir(tmp_path)
    again = make_text_features(built.captions, "clip/open_clip_model.safetensors")
    assert (again.reused, again.manifest.created["clip"]) == (True, str(tmp_path / "clip"))
    captions = built.captions.read(["caption"])["caption"].to_pylist()
    expected = clip.encode_text(clip.tokenize(captions)).numpy()
    found = np.array(table.read(["text_feature"])["text_feature"].to_pylist())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
