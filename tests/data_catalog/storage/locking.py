"""Two who want to build the same table at once."""

import threading

from data_catalog.storage.claims import build_lock


def order_of_two(root: str) -> list[str]:
    """In which order two get the right to build, the second of whom asks while the first has it."""
    told, order = threading.Event(), list[str]()

    def not_yet() -> bool:
        told.set()
        return False

    def wait() -> None:
        with build_lock(root, not_yet):
            order.append("second")

    with build_lock(root, lambda: False):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert told.wait(timeout=10)
        order.append("first")
    waiting.join(timeout=10)
    return order
