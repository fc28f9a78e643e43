import threading

from experiments.tracking.polling import watching


def test_what_changes_at_any_time_is_seen_up_to_the_end():
    written, seen, second_look = [0], [], threading.Event()

    def look():
        seen.append(len(written))
        if len(seen) >= 2:
            second_look.set()

    with watching(look, every_seconds=0.01):
        assert second_look.wait(timeout=30)
        written.append(1)
    assert seen[-1] == 2
    assert seen == sorted(seen)


def test_first_look_is_at_once_and_the_last_one_can_be_left_out():
    looks, looked = [], threading.Event()

    def look():
        looks.append(threading.current_thread())
        looked.set()

    with watching(look, every_seconds=3600, to_the_end=False):
        assert looked.wait(timeout=30)
    assert len(looks) == 1
    assert looks[0] is not threading.current_thread()
    assert not looks[0].is_alive()
