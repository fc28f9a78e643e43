import json

from experiments.studies.sweep.sweep_result import SweepResult
from tests import json_samples


def test_printed_sweep_keeps_its_keys():
    json_samples.check("sweep", SweepResult)


def test_sweep_of_the_first_version_is_read():
    sample = json.loads((json_samples.FOLDER / "sweep.json").read_text())
    del sample["missing"]
    assert SweepResult.model_validate(sample).is_complete
