"""Who else can use the cluster: its services answer without a token, or only with it."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from ipaddress import ip_address

from data_catalog.checks.findings import Findings
from stmi.network import find_proxy, why_unreachable

_SECONDS = 30
# A process of its own, since Ray reads the mode once.
_ASK_HEAD = (
    "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).get_all_node_info(timeout=10)"
)
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def find_open_services(head: str, dashboard: str | None) -> dict[int, str]:
    """Port to the name of each service that answers a client without a token.

    Args:
        head: Host and port of Ray's head.
        dashboard: Host and port of its dashboard; None where it has none.
    """
    services = {}
    if _head_answers(head):
        services[_port(head)] = "the head of Ray"
    if dashboard is not None and _dashboard_answers(dashboard):
        services[_port(dashboard)] = "the dashboard with its job API"
    return services


def check_exposure(
    services: Mapping[int, str], listeners: Mapping[int, tuple[str, ...]], is_own: bool, findings: Findings
) -> None:
    """Find services that let everybody in who can reach their port.

    Args:
        services: As `find_open_services` returns them.
        listeners: Port to the addresses at which the head listens to it.
        is_own: Ray was started by this process, and ends with it.
        findings: Gets what is wrong.
    """
    for port, name in services.items():
        addresses = [address for address in listeners.get(port, ()) if not ip_address(address).is_loopback]
        if not addresses:
            continue
        message = (
            f"{name} listens to the network ({addresses[0]}, port {port}) and asks for no token: who reaches "
            "it runs code here; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file with a token "
        )
        if is_own:
            findings.warn("open_to_network", f"{message}for the time of a run")
        else:
            findings.error("open_to_network", f"{message}on every node, and start Ray anew")


def _head_answers(head: str) -> bool:
    if why_unreachable(f"//{head}") is not None:
        return False
    environment = {name: value for name, value in os.environ.items() if name not in _TOKEN_VARIABLES}
    environment["RAY_AUTH_MODE"] = "disabled"
    asked = [sys.executable, "-c", _ASK_HEAD, head]
    try:
        done = subprocess.run(asked, env=environment, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _dashboard_answers(dashboard: str) -> bool:
    url = f"http://{dashboard}/api/jobs/"
    proxy = find_proxy(url)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy} if proxy else {}))
    try:
        with opener.open(url, timeout=_SECONDS):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
