from types import SimpleNamespace

import pytest

from data_catalog.errors import CatalogError
from data_catalog.formats import FORMATS
from data_catalog.samples.layout import layout_facts, layout_of


def samples(name: str, **created: object) -> SimpleNamespace:
    manifest = SimpleNamespace(settings={"format": name}, created=created)
    return SimpleNamespace(path="catalog/mine/samples/key", manifest=manifest)


@pytest.mark.parametrize("name", FORMATS)
def test_layout_of_ones_own_is_that_of_the_table_but_lists_nothing(name, tmp_path):
    stored = layout_of(samples("nosuch_module:LAYOUT", layout=layout_facts(FORMATS[name])))
    assert layout_of(samples(name)) is FORMATS[name]
    for split in stored.split_folders:
        assert stored.caption_files(split) == FORMATS[name].caption_files(split)
        assert stored.mask_files(f"{split}/0001_a") == FORMATS[name].mask_files(f"{split}/0001_a")
    assert (stored.is_manifest, stored.first_camera) == (
        FORMATS[name].is_manifest,
        FORMATS[name].first_camera,
    )
    with pytest.raises(CatalogError, match="only `ingest` reads what is in the user's own layout nosuch_"):
        stored.read(tmp_path)


def test_table_of_another_version_is_to_be_made_again():
    older, newer = {}, {"layout": layout_facts(FORMATS["rgbnt201"]) | {"thumbnails": "thumb/{name}.png"}}
    for created in (older, newer):
        with pytest.raises(CatalogError, match=r"catalog/mine/samples/key .*ingest the data set again"):
            layout_of(samples("nosuch_module:LAYOUT", **created))
