"""The cause of a library's error is shown, and not what its wrapper guesses."""

import sqlite3

from data_catalog.errors import describe_cause


def raised(wrapper: Exception, cause: Exception | None, *, explicit: bool = True) -> Exception:
    try:
        try:
            raise cause or AssertionError
        except Exception as inner:
            if explicit:
                raise wrapper from cause
            del inner
            raise wrapper  # noqa: B904 - as libraries do it
    except Exception as error:
        return error


def test_first_of_the_exceptions_is_the_cause() -> None:
    locked = sqlite3.OperationalError("database is locked")
    wrapped = raised(RuntimeError("(sqlite3.OperationalError) database is locked\n[SQL: INSERT ...]"), locked)
    assert describe_cause(raised(ValueError("This typically happens due to invalid data"), wrapped)) == (
        "database is locked"
    )
    assert describe_cause(raised(ValueError("guess"), locked, explicit=False)) == "database is locked"


def test_what_is_no_cause_is_left_out() -> None:
    assert describe_cause(raised(ValueError("wrong"), KeyError("cached"), explicit=False)) == "wrong"
    assert describe_cause(raised(ValueError("wrong"), None)) == "wrong"
    assert describe_cause(ValueError("one\n  line")) == "one line"
    assert describe_cause(KeyboardInterrupt()) == "KeyboardInterrupt"
    trace = 'Traceback (most recent call last):\n  File "a.py"\nOSError: [Errno 28] No space left on device'
    assert describe_cause(RuntimeError(trace)) == "OSError: [Errno 28] No space left on device"
