"""How a command ends early: by Ctrl-C or SIGTERM with one line, by a closed pipe without a word."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

FAILED_STATUS = 1
CLOSING_SECONDS = 25.0
"""How long the main thread may close what it has opened, once another one has found that nothing goes on."""
_ENDING = {signal.SIGINT: b"error: interrupted\n", signal.SIGTERM: b"error: ended by SIGTERM\n"}
_received: list[int] = []
"""Signals that raised KeyboardInterrupt; libraries raise another one in its place."""
_has_failed = False


def is_ending() -> bool:
    """Whether Ctrl-C or SIGTERM has asked this process to end, and it now closes what it has opened."""
    return bool(_received)


def has_failed() -> bool:
    """Whether this process ends since it cannot go on, as `fail` says."""
    return _has_failed


def fail(reason: str) -> NoReturn:
    """End this process from another thread than the main one, which waits for what does not come any more.

    The main thread is interrupted as by Ctrl-C, and may close what it has opened; then all ends.

    Args:
        reason: What is printed, and how to go on.
    """
    global _has_failed  # noqa: PLW0603 - of the whole process
    _has_failed = True
    print(f"error: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    # What it waits for may not let it go, and who ignores Ctrl-C is not interrupted.
    time.sleep(CLOSING_SECONDS)
    try:
        _kill(_processes_of_ray())
    finally:
        os._exit(FAILED_STATUS)


def end_on_interrupt() -> None:
    """From now on Ctrl-C and SIGTERM end this process at once: for imports, help and the end of a command.

    A script calls it before its imports. Where the caller of the script ignores a signal, it stays ignored.
    """
    for number in _ENDING:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _end)


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Context in which Ctrl-C and SIGTERM raise KeyboardInterrupt, so that what is open is closed.

    A second Ctrl-C ends the process at once: a library may swallow the first one, or closing may take long.

    Args:
        message: What is printed then: what is kept, and how to go on.

    Raises:
        SystemExit: After Ctrl-C with status 130, after SIGTERM with 143, after `fail` with 1.
    """
    ours = [number for number in _ENDING if signal.getsignal(number) is _end]
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        status = 128 + (_received.pop() if _received else signal.SIGINT)
        if _has_failed:
            status = FAILED_STATUS
        else:
            print(message, file=sys.stderr)  # noqa: T201
        if ours:
            _leave(status)
        raise SystemExit(status) from None
    finally:
        for number in ours:
            signal.signal(number, _end)


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Undo what a library does to the handlers of Ctrl-C and SIGTERM meanwhile."""
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def printing() -> Iterator[None]:
    """Context in which a result is printed; a reader that closes the pipe, as `head` does, ends it quietly.

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
    for each in _ENDING:
        if signal.getsignal(each) is _interrupt:
            signal.signal(each, _end)
    _received.append(number)
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    """End with little Python: what imports or shuts down may swallow an exception, or print it."""
    os.write(2, _ENDING[signal.Signals(number)])
    try:
        _kill(_processes_of_ray())
    finally:
        os._exit(128 + number)


def _leave(status: int) -> NoReturn:
    """End in good order, but without the end of the interpreter, in which threads of libraries may crash."""
    left = _processes_of_ray()
    atexit._run_exitfuncs()
    _kill(left)
    os._exit(status)


def _processes_of_ray() -> list[Any]:
    """The processes of a Ray that this one has started; some of them would go on for a minute without it."""
    if "ray" not in sys.modules:
        return []
    import psutil  # noqa: PLC0415 - Ray has imported it

    return psutil.Process().children(recursive=True)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        # It does not touch another process that has the number of one that has ended.
        if process.is_running():
            process.send_signal(signal.SIGKILL)
