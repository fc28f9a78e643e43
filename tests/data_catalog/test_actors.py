"""Ray Data's actors are started again a few times, and their end is one line."""

import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_catalog.actors import map_on_actors
from data_catalog.errors import CatalogError
from data_catalog.ray_failures import MAX_FAILURES
from data_catalog.tables import building
from data_catalog.tables.building import build_table
from data_catalog.tables.schemas import TableKind
from data_catalog.tables.shards import ShardMaker
from tests.data_catalog.test_ray_failures import SHORT_OF_MEMORY, died


@dataclass(frozen=True)
class _KilledMaker(ShardMaker[int]):
    """Notes in a folder how often it was asked for a shard; for one of them the system kills its process."""

    folder: Path

    def make(self, spec: int) -> tuple[pa.Table, dict[str, Any]]:
        (self.folder / f"{spec}-{os.getpid()}").touch()
        if spec == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"sample_index": pa.array([spec], pa.int64())}), {}


def build(folder: Path, maker: ShardMaker[int], shards: int = 2) -> None:
    build_table(
        catalog=folder / "catalog",
        dataset="killed",
        kind=TableKind.MASKS,
        settings={},
        inputs={},
        specs=list(range(shards)),
        maker=maker,
        summarise=lambda statistics: {},
    )


@pytest.mark.slow
def test_a_shard_whose_process_is_killed_each_time_ends_the_step_in_one_line(
    actors: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "noted"
    noted.mkdir()
    with pytest.raises(CatalogError) as ended:
        build(tmp_path, _KilledMaker(noted))
    message = str(ended.value)
    assert "\n" not in message
    for part in ("could not be built", "was killed or crashed", "memory", "fewer processes", "are kept"):
        assert part in message
    # The result of the other shard, which may come late, begins the count anew.
    assert 1 + MAX_FAILURES <= len(list(noted.glob("1-*"))) <= 2 * (1 + MAX_FAILURES)


def test_a_lack_of_memory_is_named_with_its_node_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*given: Any, **options: Any) -> Any:
        yield from ()
        raise died(SHORT_OF_MEMORY)

    monkeypatch.setenv(building.LOCAL_SECONDS_VARIABLE, "0")
    monkeypatch.setattr(building, "map_on_actors", end)
    monkeypatch.setattr(building, "_find_machines", lambda maker: [{"Resources": {"CPU": 2}}])
    with pytest.raises(
        CatalogError, match=r"node 10\.0\.0\.7 because the memory .* \(15\.21GB of 16\.00GB"
    ) as ended:
        build(tmp_path, _KilledMaker(tmp_path))
    assert "use nodes with more memory" in str(ended.value)


@pytest.mark.slow
def test_rows_of_a_lost_process_are_made_by_another_and_nothing_is_printed(
    actors: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"value": value} for value in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # About Ray's own defaults, where this process makes its first data set. Python shows it to no user.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.data\.context")
        made = list(map_on_actors(rows, _KilledOnce, (tmp_path,), 2, {"num_cpus": 1}, in_order=True))
    assert [(batch["value"][0], len(batch["value"])) for batch in made] == [(n, 2) for n in range(6)]
    assert all(set(batch) == {"value"} for batch in made)
    assert (tmp_path / "killed").exists()
    assert capfd.readouterr() == ("", "")


class _KilledOnce:
    """Doubles the rows; the system kills its process once, at the fourth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["value"][0] == 3 and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": np.repeat(batch["value"], 2)}
