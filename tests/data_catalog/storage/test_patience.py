"""Storage that goes away for a while."""

import re
import time
from collections.abc import Callable

import pytest

from data_catalog.errors import StorageAwayError
from data_catalog.storage import patience
from data_catalog.storage.patience import Patience

AWAY = "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"


class Storage:
    """Answers from the time on that is given; before, it fails."""

    def __init__(self) -> None:
        self.fails_until = 0.0
        self.requests = 0

    def away(self, seconds: float) -> "Storage":
        self.fails_until = time.monotonic() + seconds
        return self

    def __call__(self) -> str:
        self.requests += 1
        if time.monotonic() < self.fails_until:
            raise OSError(AWAY)
        return "answer"


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(patience, "_FIRST_PAUSE_SECONDS", 0.02)
    return Storage()


@pytest.fixture
def waits(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Patience]:
    """From the seconds of patience to a patience that has reached the storage."""

    def reached(seconds: float) -> Patience:
        monkeypatch.setattr(patience, "WORKER_VARIABLES", {})
        patience.wait_for_storage(seconds)
        one = Patience("s3://lab")
        assert one.ask(storage) == "answer"
        return one

    return reached


def test_storage_that_comes_back_is_waited_for(storage: Storage, waits: Callable[[float], Patience]) -> None:
    one = waits(60)
    assert one.ask(storage.away(0.3)) == "answer"
    assert storage.requests > 3


def test_storage_that_stays_away_is_waited_for_as_long_as_said(
    storage: Storage, waits: Callable[[float], Patience]
) -> None:
    one, began = waits(0.3), time.monotonic()
    storage.away(60)
    with pytest.raises(StorageAwayError, match=rf"s3://lab has not answered .*{AWAY}.* kept.* same command"):
        one.ask(storage)
    assert 0.3 <= time.monotonic() - began < 2
    # What is closed at the end does not wait as long again.
    known, again = storage.requests, time.monotonic()
    with pytest.raises(StorageAwayError):
        one.ask(storage)
    assert (storage.requests, time.monotonic() - again < 0.2) == (known + 1, True)
    assert one.ask(storage.away(0)) == "answer"
    assert one.ask(storage.away(0.1)) == "answer"


def test_process_that_was_asked_to_end_waits_no_longer(
    storage: Storage, waits: Callable[[float], Patience], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = waits(60)
    monkeypatch.setattr(patience, "is_ending", lambda: True)
    with pytest.raises(StorageAwayError):
        one.ask(storage.away(60))
    assert storage.requests == 2


def test_one_request_that_always_fails_ends_although_others_succeed(
    storage: Storage, waits: Callable[[float], Patience]
) -> None:
    one = waits(0.3)
    storage.away(60)

    def fail() -> None:
        one.ask(lambda: "another")
        storage()

    with pytest.raises(StorageAwayError):
        one.ask(fail)


def test_storage_that_was_never_reached_is_not_waited_for(storage: Storage) -> None:
    one = Patience("s3://lab")
    for _ in range(2):
        with pytest.raises(OSError, match="curlCode") as error:
            one.ask(storage.away(60))
        assert not isinstance(error.value, StorageAwayError)
    assert storage.requests == 2


def test_worker_waits_for_storage_that_who_started_it_had_reached(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in patience.WORKER_VARIABLES:
        monkeypatch.setenv(name, "60")
    assert Patience("s3://lab").ask(storage.away(0.1)) == "answer"
    with patience.without_patience(), pytest.raises(OSError, match="curlCode"):
        Patience("s3://lab").ask(storage.away(60))


@pytest.mark.parametrize(
    "message",
    [
        "AWS Error NO_SUCH_BUCKET during PutObject operation: The specified bucket does not exist",
        "AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
        "Bucket 'lab' not found. To create buckets, enable the allow_bucket_creation option.",
        "google::cloud::Status(PERMISSION_DENIED: no",
        "[Errno 28] No space left on device",
    ],
)
def test_refused_request_is_not_repeated(waits: Callable[[float], Patience], message: str) -> None:
    requests = 0

    def refuse() -> None:
        nonlocal requests
        requests += 1
        raise OSError(message)

    with pytest.raises(OSError, match=re.escape(message)):
        waits(60).ask(refuse)
    assert requests == 1


@pytest.mark.parametrize(
    "message",
    [
        "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
        "AWS Error SERVICE_UNAVAILABLE during PutObject operation: 503 Service Unavailable",
        "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.",
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted",
    ],
)
def test_request_that_may_succeed_later_is_repeated(waits: Callable[[float], Patience], message: str) -> None:
    errors = [OSError(message)]

    def answer() -> str:
        if errors:
            raise errors.pop()
        return "answer"

    assert waits(60).ask(answer) == "answer"
