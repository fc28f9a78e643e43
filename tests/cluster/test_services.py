import urllib.request

import mlflow

from tests.mlflow_server import free_port, serving


def note(client, experiment):
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "kept", "note.txt")
    return run


def test_artifacts_are_found_without_the_server_and_older_ones_with_it(tmp_path):
    store, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "server"
    with serving(store, folder, free_port()) as address:
        client = mlflow.MlflowClient(address)
        run = note(client, client.create_experiment("new"))
        # As servers of older versions made experiments.
        older = note(client, client.create_experiment("older", "mlflow-artifacts:/1"))
        for made in (run, older):
            # What a click in MLflow's UI asks for.
            with urllib.request.urlopen(f"{address}/get-artifact?path=note.txt&run_uuid={made}") as answer:
                assert answer.read() == b"kept"
    assert len(list((folder / "earlier_artifacts").rglob("note.txt"))) == 1
    (kept,) = (folder / "artifacts").rglob("note.txt")
    direct = mlflow.MlflowClient(store)
    assert [item.path for item in direct.list_artifacts(run)] == ["note.txt"]
    assert direct.get_run(run).info.artifact_uri == kept.parent.as_uri()
