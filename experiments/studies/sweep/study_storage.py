"""The URL of the database that holds Optuna's study of a sweep."""

from data_catalog.uris import without_credentials
from experiments.recipes import ConfigError


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
