"""Calls a function again and again from another thread, while this one is busy."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def polling(callback: Callable[[], None], every_seconds: float, *, final_call: bool = True) -> Iterator[None]:
    """Call a function meanwhile: at once, and again after each pause.

    Args:
        callback: The function; never called by two threads at once.
        every_seconds: Length of the pause.
        final_call: Call it once more at the end, so that it misses nothing.
    """
    stop = threading.Event()

    def poll() -> None:
        callback()
        while not stop.wait(every_seconds):
            callback()
        if final_call:
            callback()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
