"""Whether the Hugging Face hub can be reached: its own client takes a minute of retries to find out."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

CONNECT_SECONDS = 5.0
"""For each address of the host."""
PATIENCE_SECONDS = 10.0
"""For everything, with the look-up of the name, which has no limit of its own."""


def why_unreachable() -> str | None:
    """Why nothing can be downloaded from the hub; None where it, or the proxy in front of it, answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    faults: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            faults.append(None)
        except OSError as error:
            faults.append(error.strerror or str(error))

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(PATIENCE_SECONDS)
    fault = faults[0] if faults else f"no answer in {PATIENCE_SECONDS:g} s"
    return None if fault is None else f"{host}: {fault}"


@contextmanager
def cache_alone() -> Iterator[None]:
    """Let the hub's client read its cache and ask no server, as under HF_HUB_OFFLINE."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
