"""Hosts on this machine, each a network namespace of its own, with a link of a known speed to a switch."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from experiments.experiment_config import ConfigError

SHAPE = ("burst", "512kb", "latency", "100ms")
"""Shape of the token bucket: more than the largest packet at a time, and a queue."""


def address(host: int) -> str:
    """IP address of a host, counted from 0."""
    return f"10.78.0.{host + 1}"


@contextmanager
def shaped_network(hosts: int, rate: str | None) -> Iterator[list[list[str]]]:
    """Hosts that reach each other, and nothing else; their processes are ended at the end.

    Args:
        hosts: Number of hosts.
        rate: Rate of each link in both directions, as `tc` writes it (`1gbit`); None for as fast as it goes.

    Yields:
        For each host, what to put before a command that is to run on it.

    Raises:
        ConfigError: This machine does not let this process make network namespaces, or shape links.
    """
    switch, *spaces = names = [f"stmi-{os.getpid()}-{name}" for name in ("switch", *map(str, range(hosts)))]
    with ExitStack() as made:
        for name in names:
            _call("ip", "netns", "add", name)
            made.callback(_delete, name)
        _call("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        _call("ip", "-n", switch, "link", "set", "br0", "up")
        for host, space in enumerate(spaces):
            port = f"port{host}"
            ends = ("eth0", "netns", space, "type", "veth", "peer", "name", port, "netns", switch)
            _call("ip", "link", "add", *ends)
            _call("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
            _call("ip", "-n", space, "address", "add", f"{address(host)}/24", "dev", "eth0")
            _call("ip", "-n", space, "link", "set", "lo", "up")
            _call("ip", "-n", space, "link", "set", "eth0", "up")
            if rate is not None:
                for owner, device in ((space, "eth0"), (switch, port)):
                    shaped = ("dev", device, "root", "tbf", "rate", rate, *SHAPE)
                    _call("tc", "-n", owner, "qdisc", "add", *shaped)
        yield [["ip", "netns", "exec", space] for space in spaces]


def _delete(space: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", space], check=False, capture_output=True, text=True)
    for number in found.stdout.split():
        subprocess.run(["kill", "-KILL", number], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def _call(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not installed (Debian: iproute2)") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())
        raise ConfigError(
            f"hosts in network namespaces with shaped links need root on Linux: {' '.join(command)}: {reason}"
        ) from None
