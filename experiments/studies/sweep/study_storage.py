"""The database that holds Optuna's study of a sweep: its URL, and its file where it is SQLite."""

import sqlite3
from contextlib import closing
from pathlib import Path

from experiments.experiment_config import ConfigError
from stmi.uris import without_credentials


def check_url(url: str) -> None:
    """Refuse what is no URL of a database, before anything is made for it.

    Raises:
        ConfigError: It cannot be read; the message holds no password.
    """
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - only where a database is named
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"--study-storage {without_credentials(url)} is no database's URL; expected one such as "
            "postgresql://user:password@host:5432/optuna"
        ) from None


def find_sqlite_fault(file: Path) -> str | None:
    """What is wrong with a SQLite file; None where it is sound, is not there or is being written."""
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            found: str = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        # It is locked, or cannot be opened; who uses it says so.
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if found == "ok" else found
