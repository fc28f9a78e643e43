import threading

from data_catalog.errors import StorageAwayError
from experiments.tracking.polling import polling


def test_polling_sees_every_change_up_to_the_end():
    written, seen, second_call = [0], [], threading.Event()

    def callback():
        seen.append(len(written))
        if len(seen) >= 2:
            second_call.set()

    with polling(callback, every_seconds=0.01):
        assert second_call.wait(timeout=30)
        written.append(1)
    assert seen[-1] == 2
    assert seen == sorted(seen)


def test_first_call_is_at_once_and_the_last_one_can_be_left_out():
    calls, called = [], threading.Event()

    def callback():
        calls.append(threading.current_thread())
        called.set()

    with polling(callback, every_seconds=3600, final_call=False):
        assert called.wait(timeout=30)
    assert len(calls) == 1
    assert calls[0] is not threading.current_thread()
    assert not calls[0].is_alive()


def test_storage_that_is_away_does_not_end_the_polling_and_is_named_once(caplog):
    calls, enough = [], threading.Event()

    def callback():
        calls.append(1)
        if len(calls) >= 3:
            enough.set()
        raise StorageAwayError("s3://lab has not answered")

    with polling(callback, every_seconds=0.01):
        assert enough.wait(timeout=30)
    assert [record.message for record in caplog.records] == ["s3://lab has not answered"]
