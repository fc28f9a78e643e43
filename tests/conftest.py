import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest
import ray
from xdist.scheduler import LoadFileScheduling

from data_catalog.environment import prepare_environment
from data_catalog.ray_session import require_token, silence_ray
from data_catalog.storage.filesystems import open_root
from data_catalog.tables.building import LOCAL_SECONDS_VARIABLE
from tests.postgresql import PostgreSQL, skip_where_missing

ROOT = Path(__file__).parents[1]
BUCKET = "lab"
S3_SECRET = "not-a-secret"
_HUNG = pytest.StashKey[str]()
HOSTS = "tests/two_hosts/"
# Ray's workers have the environment of the time when the session starts, which is before any fixture of S3.
# Nothing is left in the home folder. Tables are made without actors, which take seconds to start.
_CACHE = TemporaryDirectory(prefix="stmi-cache-")
os.environ |= {
    "DATA_CATALOG_CACHE": _CACHE.name,
    LOCAL_SECONDS_VARIABLE: "inf",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": S3_SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class FilesAndHosts(LoadFileScheduling):
    """Gives each process one file of tests after the other, and all that need hosts to one process.

    So what the tests of a file share is made once, and the hosts' cluster starts once.
    """

    def _split_scope(self, nodeid: str) -> str:
        return HOSTS if nodeid.startswith(HOSTS) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """The scheduler of `--dist loadfile`."""
    return FilesAndHosts(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need hosts are slow, and begin first: together they take as long as all other slow ones."""
    items.sort(key=lambda item: not item.nodeid.startswith(HOSTS))
    for item in items:
        if item.nodeid.startswith(HOSTS):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Iterator[None]:
    """Raise the error of pytest-timeout as KeyboardInterrupt: Ray's waits end for nothing else."""
    result = yield
    fail = signal.getsignal(signal.SIGALRM)
    assert callable(fail)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        try:
            fail(signum, frame)
        except pytest.fail.Exception as error:
            item.stash[_HUNG] = f"{error}; its processes: {_describe_processes()}"
            raise KeyboardInterrupt from None

    signal.signal(signal.SIGALRM, interrupt)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """End a test that hangs in a fixture, and not all of them."""
    with _hang_is_failure(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """The same in the test itself."""
    with _hang_is_failure(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """The same in the end of a fixture."""
    with _hang_is_failure(item):
        return (yield)


def _describe_processes() -> str:
    """Name, state and seconds of computing of each process that this one has started, as Ray's workers."""
    described = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            spent = process.cpu_times()
            described.append(f"{process.name()} ({process.status()}, {spent.user + spent.system:.0f} s)")
    return ", ".join(described)


@contextmanager
def _hang_is_failure(item: pytest.Item) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # Of any kind: a script makes another error, or an exit status, of an interrupt.
        if (hung := item.stash.get(_HUNG, None)) is None:
            raise
        del item.stash[_HUNG]
        pytest.fail(hung)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small Ray session for all tests that need one; starting it takes seconds."""
    prepare_environment()
    require_token()
    # Workers import the project and the tests from this tree.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # Ray ends a process that was idle for a second; actors of later tests would wait for new ones.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 * 2**20,
    )
    silence_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A server for all tests that need one."""
    skip_where_missing()
    server = PostgreSQL()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def object_storage() -> Iterator[Callable[[str], str]]:
    """From a name to the URI of a catalog of that name, on an S3 server of the session's own."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - takes seconds, which most tests need not wait for

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = {"endpoint_override": f"{host}:{port}", "scheme": "http", "region": "us-east-1"}
    filesystem, _ = open_root(f"s3://{BUCKET}?{urlencode(query | {'allow_bucket_creation': 'true'})}")
    filesystem.create_dir(BUCKET)
    yield lambda name: f"s3://{BUCKET}/catalogs/{name}?{urlencode(query)}"
    server.stop()
