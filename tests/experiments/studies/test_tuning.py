import pytest

from experiments import ablate, sweep_sfm


@pytest.mark.parametrize("script", [ablate, sweep_sfm])
def test_study_that_needs_more_gpus_than_there_are_is_refused_before_it_begins(
    script, ray_session, tmp_path, capsys
):
    asked = ["--table", "3"] if script is ablate else []
    assert script.main([*asked, "--gpus-per-worker", "1", "--workspace", str(tmp_path)]) == 2
    assert "with 1 GPUs each, but the cluster has 0 GPUs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
