"""How a command ends early: by Ctrl-C with one line and status 130, by a closed pipe without a word."""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED_STATUS = 130


def end_on_interrupt() -> None:
    """From now on Ctrl-C ends this process at once: for imports, help and the end of a command.

    A script calls it before its imports. Where the caller of the script ignores Ctrl-C, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Meanwhile Ctrl-C raises KeyboardInterrupt, so that what was opened is closed; then the command ends.

    A second Ctrl-C ends the process at once: a library may swallow the first one, or closing may take long.

    Args:
        message: What is printed then: what is kept, and how to go on.

    Raises:
        SystemExit: After Ctrl-C, with status 130.
    """
    ends = signal.getsignal(signal.SIGINT) is _end
    if ends:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(message, file=sys.stderr)  # noqa: T201
        raise SystemExit(INTERRUPTED_STATUS) from None
    finally:
        if ends:
            signal.signal(signal.SIGINT, _end)


@contextmanager
def printing() -> Iterator[None]:
    """Meanwhile a result is printed; a reader that closes the pipe early, such as `head`, ends it quietly.

    Nothing follows it on standard output: what Ray says of a lost node it may print when the process ends.
    """
    try:
        yield
        sys.stdout.flush()
        atexit.register(_leave_standard_output)
    except BrokenPipeError:
        # Python flushes standard output once more at its end, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_standard_output() -> None:
    sys.stdout = sys.stderr


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _end)
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    """End without any more Python: what imports or shuts down may swallow an exception, or print it."""
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED_STATUS)
