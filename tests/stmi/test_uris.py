import pytest

from stmi.uris import without_credentials


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:secret@host:5432/optuna", "postgresql://host:5432/optuna"),
        ("postgresql://me:s#secret@host/db", "postgresql://host/db"),
        ("postgresql://me:s/secret@host/db", "postgresql://host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db"),
        ("https://me:secret@host/mlflow", "https://host/mlflow"),
        ("sqlite:////a/b@c.db?timeout=3", "sqlite:////a/b@c.db?timeout=3"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("databricks", "databricks"),
    ],
)
def test_uri_is_shown_without_its_credentials(uri, shown):
    assert without_credentials(uri) == shown
