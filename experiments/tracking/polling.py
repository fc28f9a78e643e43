"""Calls a function again and again from another thread, while this one is busy."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_catalog.errors import CatalogError

logger = logging.getLogger(__name__)


@contextmanager
def polling(callback: Callable[[], None], every_seconds: float, *, final_call: bool = True) -> Iterator[None]:
    """Context in which another thread calls a function: at once, and again after each pause.

    Args:
        callback: The function; never called by two threads at once.
        every_seconds: Length of the pause.
        final_call: Call it once more at the end, so that it misses nothing.
    """
    stop, is_failing = threading.Event(), False

    def call() -> None:
        nonlocal is_failing
        try:
            callback()
            is_failing = False
        except CatalogError as error:
            # Storage may come back before the others have to give up, too.
            if not is_failing:
                logger.warning("%s", error)
            is_failing = True

    def poll() -> None:
        call()
        while not stop.wait(every_seconds):
            call()
        if final_call:
            call()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
