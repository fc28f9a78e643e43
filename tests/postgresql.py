"""A PostgreSQL server of the tests' own, on loopback, whose databases ask for a password."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from cluster.processes import find_free_port

PASSWORD = "not-a-secret-either"
_USER = "postgres"


def missing_requirement() -> str | None:
    """Why no server can be started here; None where one can."""
    if _program("pg_ctl") is None:
        return "no PostgreSQL is installed (Debian: postgresql)"
    return None


class PostgreSQL:
    """The server; it is started by `start` and ended by `stop`, and keeps its databases between the two."""

    def __init__(self) -> None:
        # Below the system's folder, where the server's own user may go, which root is not.
        self._folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir="/tmp"))
        self._as_root = os.getuid() == 0
        if self._as_root:
            shutil.chown(self._folder, _USER)
        self._port = find_free_port()
        password = self._folder / "password"
        password.write_text(PASSWORD)
        self._run(
            *("initdb", "--pgdata", self._data, "--username", _USER, "--pwfile", str(password)),
            *("--auth", "scram-sha-256", "--no-sync"),
        )

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def start(self) -> None:
        """Start the server; returns when it answers."""
        options = f"-p {self._port} -h 127.0.0.1 -k {self._folder} -c fsync=off"
        self._run(
            "pg_ctl", "start", "--wait", "-D", self._data, "-o", options, "-l", str(self._folder / "log")
        )

    def stop(self) -> None:
        """End the server and the connections of all clients at once."""
        self._run("pg_ctl", "stop", "--wait", "-D", self._data, "--mode", "fast")

    def close(self) -> None:
        """End the server and remove what it keeps."""
        self.stop()
        shutil.rmtree(self._folder)

    def database(self, name: str) -> str:
        """Make a database that does not exist; returns its URL, with the password."""
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://{_USER}:{PASSWORD}@127.0.0.1:{self._port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [_program(program), *arguments],
            user=_USER if self._as_root else None,
            # What inherits a pipe of pg_ctl keeps it open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            check=False,
        )
        log = self._folder / "log"
        assert done.returncode == 0, log.read_text() if log.exists() else f"{program} failed"


def _program(name: str) -> str | None:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(versions[-1]) if versions else None)


def skip_where_missing() -> None:
    """Skip a test where no server can be started."""
    if reason := missing_requirement():
        pytest.skip(reason)
