"""The cause of a library's error is shown, and not what its wrapper guesses."""

import pickle
import sqlite3
import traceback

import pytest

from data_catalog.errors import DamagedFileError, describe_cause


def raised(wrapper: Exception, cause: Exception) -> Exception:
    try:
        raise wrapper from cause
    except type(wrapper) as error:
        return error


def test_first_of_the_exceptions_is_the_cause() -> None:
    locked = sqlite3.OperationalError("database is locked")
    wrapped = raised(RuntimeError("(sqlite3.OperationalError) database is locked\n[SQL: INSERT ...]"), locked)
    guessed = raised(ValueError("This typically happens due to invalid data"), wrapped)
    assert describe_cause(guessed) == "database is locked"
    # As Tune words it.
    text = "".join(traceback.format_exception(guessed))
    assert describe_cause(RuntimeError(text)) == "sqlite3.OperationalError: database is locked"


def clean_up_after_a_failure() -> None:
    try:
        raise RuntimeError("training failed")
    except RuntimeError:
        raise ValueError("disk is full")  # noqa: B904 - what a clean-up finds


def test_what_was_being_handled_meanwhile_is_no_cause() -> None:
    with pytest.raises(ValueError, match="disk is full") as raised:
        clean_up_after_a_failure()
    assert describe_cause(raised.value) == "disk is full"
    text = "".join(traceback.format_exception(raised.value))
    assert describe_cause(RuntimeError(text)) == "ValueError: disk is full"


def test_cause_is_one_line() -> None:
    assert describe_cause(ValueError("one\n  line")) == "one line"
    assert describe_cause(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert describe_cause(KeyError("pixels")) == "KeyError: 'pixels'"


def test_error_of_a_damaged_file_reaches_another_process_as_it_is() -> None:
    error = DamagedFileError("a.json", "the file: Invalid JSON", "restore it")
    sent = pickle.loads(pickle.dumps(error))
    assert type(sent) is DamagedFileError
    assert str(sent) == str(error) == "a.json is damaged (the file: Invalid JSON); restore it"
