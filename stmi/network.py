"""Whether a server answers, asked before libraries ask it that wait for minutes; and through which proxy."""

import socket
import threading
from collections.abc import MutableMapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stmi.uris import presentable_uri

CONNECT_SECONDS = 5.0
"""For each address of the host."""
PATIENCE_SECONDS = 10.0
"""For everything, with the look-up of the name, which has no limit of its own."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY = ("NO_PROXY", "no_proxy")
"""Variables with the hosts that are asked without a proxy; some libraries read one, some the other."""


def why_unreachable(url: str) -> str | None:
    """Why no request can be sent to the server of a URL; None where it, or the proxy in front of it, answers.

    Args:
        url: Such as `https://host/path`, or `//host:port` of a server that is no web server.
    """
    if fault := _why_malformed(url):
        return fault
    proxy = find_proxy(url)
    asked = urlsplit(url if proxy is None else proxy)
    host = asked.hostname or ""
    faults: list[str | None] = []

    def connect() -> None:
        try:
            port = asked.port or (443 if asked.scheme == "https" else 80)
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            faults.append(None)
        except (OSError, ValueError) as error:
            faults.append(getattr(error, "strerror", None) or str(error))

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(PATIENCE_SECONDS)
    fault = faults[0] if faults else f"no answer in {PATIENCE_SECONDS:g} s"
    return None if fault is None else f"{host}: {fault}{through_proxy(url)}"


def _why_malformed(url: str) -> str | None:
    """What is wrong with the form of a URL, without any part of it: the password may be in each; or None."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read here
    except ValueError:
        is_whole = False
    else:
        # A password with one of these ends the host too early, and its rest would be looked up, and shown.
        is_whole = "@" not in parts.path + parts.query + parts.fragment
    if is_whole:
        return None
    return "malformed: expected HOST:PORT, and / ? # @ : in a user or password as %2F %3F %23 %40 %3A"


def find_proxy(url: str) -> str | None:
    """The proxy through which the environment has a URL asked, as a URL; None for none."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = (proxies.get(parts.scheme) or proxies.get("all")) if parts.scheme else None
    if not proxy or is_loopback(url) or proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def through_proxy(url: str) -> str:
    """The proxy of a URL as a message names it, with a space before it; nothing where there is none."""
    proxy = find_proxy(url)
    scheme = urlsplit(url).scheme
    return f" through the proxy {presentable_uri(proxy)} ({scheme}_proxy or all_proxy)" if proxy else ""


def is_loopback(url: str) -> bool:
    """Whether the server of a URL is on this machine."""
    return urlsplit(url).hostname in LOOPBACK


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Make processes with an environment ask servers of this machine without a proxy."""
    for name in NO_PROXY:
        hosts = [host.strip() for host in environment.get(name, "").split(",") if host.strip()]
        environment[name] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
