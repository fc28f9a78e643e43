"""Looks at something again and again from another thread, while this one is busy."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching(look: Callable[[], None], every_seconds: float, *, to_the_end: bool = True) -> Iterator[None]:
    """Meanwhile call a function: at once, and again after each pause.

    Args:
        look: What is called; never by two threads at once.
        every_seconds: Length of the pause.
        to_the_end: Whether it is called once more at the end, so that it misses nothing.
    """
    stop = threading.Event()

    def watch() -> None:
        look()
        while not stop.wait(every_seconds):
            look()
        if to_the_end:
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
