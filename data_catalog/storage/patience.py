"""Storage that goes away for a while is waited for, by every process that uses it.

A storage that this process has not reached yet is not waited for, so that a wrong address is known at once.
Workers of Ray wait from the beginning: whoever started them had reached it.
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from data_catalog.errors import StorageAwayError
from data_catalog.interrupts import is_ending
from data_catalog.ray_session import WORKER_VARIABLES

DEFAULT_SECONDS = 600.0
_VARIABLE = "DATA_CATALOG_STORAGE_PATIENCE"
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
# Of S3, and of Google's client.
_TEMPORARY = re.compile(
    r"NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE"
    r"|HTTP status (429|5\d\d)|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED)\b"
)

WORKER_VARIABLES.setdefault(_VARIABLE, str(DEFAULT_SECONDS))

_LOGGER = logging.getLogger(__name__)

_before_repeating: ContextVar[Callable[[], None] | None] = ContextVar("before_repeating", default=None)

Answer = TypeVar("Answer")


def wait_for_storage(seconds: float) -> None:
    """Set how long this process, and the workers of a Ray that it starts or joins later, wait for storage."""
    WORKER_VARIABLES[_VARIABLE] = str(seconds)


@contextmanager
def without_patience() -> Iterator[None]:
    """Context in which this process waits for no storage."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


@contextmanager
def checking(check: Callable[[], None] | None) -> Iterator[None]:
    """Context in which this thread calls a function before it repeats a request; it may raise an error."""
    token = _before_repeating.set(check)
    try:
        yield
    finally:
        _before_repeating.reset(token)


def is_temporary(error: OSError) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, ConnectionError | TimeoutError) or _TEMPORARY.search(str(error)) is not None


class Patience:
    """Waits for one storage.

    Args:
        name: Name of the storage, as messages call it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_reached = False
        self._away_since: float | None = None
        # The handler of a signal may ask in the middle of another request of its thread.
        self._lock = threading.RLock()

    def ask(self, request: Callable[[], Answer], *, reaches: bool = True) -> Answer:
        """The answer to a request, which is repeated while the storage is away.

        Args:
            request: Raises OSError where there is no answer.
            reaches: Whether an answer comes from the storage itself.

        Raises:
            StorageAwayError: It was away for too long.
            OSError: It refuses the request, or was never reached.
        """
        began, pause = time.monotonic(), _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = request()
            except OSError as error:
                if not is_temporary(error):
                    self._answered()
                    raise
                self._wait(error, began, pause)
                if check := _before_repeating.get():
                    with checking(None):
                        check()
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                if reaches:
                    self._answered()
                return answer

    def _answered(self) -> None:
        with self._lock:
            self._is_reached, self._away_since = True, None

    def _wait(self, error: OSError, began: float, pause: float) -> None:
        """Wait a little; raises where all requests, or this one, have had no answer for too long."""
        seconds = self._seconds
        with self._lock:
            is_new = self._away_since is None
            since = min(began, began if self._away_since is None else self._away_since)
            self._away_since = since
        left = since + seconds - time.monotonic()
        if left <= 0 or is_ending():
            if not seconds:
                raise error
            raise StorageAwayError(
                f"{self.name} has not answered for {time.monotonic() - since:.0f} s ({error}); what was "
                "stored until then is kept, and the same command continues once it answers"
            ) from error
        if is_new:
            _LOGGER.warning("%s does not answer (%s); waiting up to %.0f s for it", self.name, error, left)
        # Many processes ask.
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))

    @property
    def _seconds(self) -> float:
        inherited = os.environ.get(_VARIABLE)
        if inherited is not None:
            return float(inherited)
        return float(WORKER_VARIABLES[_VARIABLE]) if self._is_reached else 0.0
