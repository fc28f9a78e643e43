"""Whether the Hugging Face hub can be reached: its own client takes a minute of retries to find out."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants

from stmi import network


def why_unreachable() -> str | None:
    """Why nothing can be downloaded from the hub; None where it, or the proxy in front of it, answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return network.why_unreachable(constants.ENDPOINT)


@contextmanager
def cache_alone() -> Iterator[None]:
    """Let the hub's client read its cache and ask no server, as under HF_HUB_OFFLINE."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
