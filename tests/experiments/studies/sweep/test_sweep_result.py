"""What a sweep comes to."""

from experiments.studies.sweep.sweep_result import SweepResult
from tests import json_samples


def test_printed_sweep_keeps_its_keys():
    json_samples.check("sweep", SweepResult)
