import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_catalog.inspect.verification import verify
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.table import Manifest


@pytest.fixture
def catalog(built: Any, tmp_path: Path) -> Path:
    """A copy of the small catalog that the test may break."""
    return Path(shutil.copytree(built.catalog, tmp_path / "catalog"))


def a_shard(catalog: Path, kind: TableKind) -> Path:
    return sorted((catalog / "small" / kind.value).rglob("shard-*"))[1]


def test_untouched_catalog_has_no_fault(catalog: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(catalog, "small", lambda done, total: seen.append((done, total)))
    assert found.errors == ()
    total = sum(found.tables.values())
    assert total == len(list(catalog.rglob("shard-*")))
    assert seen == [(done, total) for done in range(total + 1)]


@pytest.mark.parametrize("kind", [TableKind.SAMPLES, TableKind.MASKS, TableKind.CAPTIONS, TableKind.VIEW])
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_any_changed_byte_is_found(catalog: Path, kind: TableKind, position: float) -> None:
    path = a_shard(catalog, kind)
    data = bytearray(path.read_bytes())
    data[round(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    [fault] = verify(catalog, "small").errors
    assert (fault.table, fault.shard) == (f"{kind.value}/{path.parent.name}", path.name)
    assert fault.message.startswith("its bytes changed: SHA-256 is ")
    assert f"delete the folder {path.parent} and run its step again" in fault.message


def test_shard_that_is_gone_is_found(catalog: Path) -> None:
    path = a_shard(catalog, TableKind.MASKS)
    path.unlink()
    [fault] = verify(catalog, "small").errors
    assert fault.shard == path.name
    assert fault.message.startswith("it cannot be read (")


def change(path: Path, **values: Any) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | values, indent=1) + "\n")


def test_changed_manifest_is_found(catalog: Path) -> None:
    path = a_shard(catalog, TableKind.MASKS).parent / "manifest.json"
    statistics = json.loads(path.read_text())["statistics"]
    change(path, statistics=statistics | {"mean_iou": 0.999})
    [fault] = verify(catalog, "small").errors
    assert (fault.table, fault.shard) == (f"masks/{path.parent.name}", "")
    assert fault.message.startswith("its manifest changed since it was made")

    change(path, statistics=statistics, seal="")
    [fault] = verify(catalog, "small").errors
    assert fault.message.startswith(
        "its manifest has no seal: it was removed, or an old version made the table"
    )
    assert f"delete the folder {path.parent} and run its step again" in fault.message

    change(path, inputs={"samples": "0" * 64})
    [fault] = verify(catalog, "small").errors
    assert "the manifest says" in fault.message

    path.write_text(path.read_text()[:-20])
    [fault] = verify(catalog, "small").errors
    assert "is not a manifest of this version" in fault.message
    assert fault.table == f"masks/{path.parent.name}"


@pytest.mark.parametrize(
    ("before", "after"), [('"rows": ', '"rows":  '), ('"rows"', '"ro\\u0077s"'), ("\n}\n", "\n}")]
)
def test_manifest_that_says_the_same_in_other_bytes_is_found(catalog: Path, before: str, after: str) -> None:
    path = a_shard(catalog, TableKind.MASKS).parent / "manifest.json"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    [fault] = verify(catalog, "small").errors
    assert fault.message.startswith(
        "the bytes of its manifest changed since it was made, though no value did"
    )


def test_rows_replaced_together_with_the_file_digest_are_found(catalog: Path) -> None:
    path = a_shard(catalog, TableKind.MASKS)
    manifest = Manifest.model_validate_json((path.parent / "manifest.json").read_text())
    other = next(shard for shard in manifest.shards if shard.file != path.name)
    shutil.copy(path.parent / other.file, path)
    shards = [
        shard.model_copy(update={"sha256": other.sha256}) if shard.file == path.name else shard
        for shard in manifest.shards
    ]
    forged = manifest.model_copy(update={"shards": tuple(shards)}).sealed()
    (path.parent / "manifest.json").write_bytes(forged.to_bytes())
    [fault] = verify(catalog, "small").errors
    assert fault.shard == path.name
    assert "its rows are not those in the manifest" in fault.message


def test_unfinished_table_is_listed_and_is_no_fault(catalog: Path) -> None:
    path = a_shard(catalog, TableKind.CAPTIONS).parent / "manifest.json"
    path.unlink()
    found = verify(catalog, "small")
    assert found.errors == ()
    assert found.unfinished == (f"captions/{path.parent.name}",)
