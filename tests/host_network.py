"""Hosts with networks of their own on this machine: network namespaces, joined by a switch."""

import ctypes
import functools
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SWITCH = "switch"
_CARD = "eth0"
_CLONE_NEWNET = 0x40000000
"""Of the system's header `sched.h`."""


@functools.cache
def missing_requirement() -> str | None:
    """Why there can be no such hosts here; None where there can be."""
    if shutil.which("ip") is None:
        return "the program ip (iproute2) is missing"
    tried = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True, text=True)
    return f"no network namespaces without root: {tried.stderr.strip()}" if tried.returncode else None


class HostNetwork:
    """Hosts on one switch, without a way to the outside; each has a loopback of its own.

    Args:
        addresses: Those of the hosts, by name, in one network of 256.
    """

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = dict(addresses)
        unique = secrets.token_hex(4)
        self._spaces = {name: f"stmi-{unique}-{name}" for name in (*self.addresses, _SWITCH)}

    def start(self) -> None:
        """Make the hosts and the switch."""
        for space in self._spaces.values():
            _ip("netns", "add", space)
        switch = self._spaces[_SWITCH]
        _ip("-n", switch, "link", "add", _SWITCH, "type", "bridge")
        _ip("-n", switch, "link", "set", _SWITCH, "up")
        for name, address in self.addresses.items():
            space = self._spaces[name]
            peer = ("peer", "name", name, "netns", switch)
            _ip("link", "add", _CARD, "netns", space, "type", "veth", *peer)
            _ip("-n", switch, "link", "set", name, "master", _SWITCH, "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", _CARD)
            _ip("-n", space, "link", "set", "lo", "up")
            self.connect(name)

    def command(self, name: str, *command: str) -> tuple[str, ...]:
        """What runs a command on a host's network."""
        return "ip", "netns", "exec", self._spaces[name], *command

    def processes(self, name: str) -> list[int]:
        """Numbers of the processes of a host."""
        return [int(number) for number in _ip("netns", "pids", self._spaces[name]).split()]

    def listen(self, name: str) -> socket.socket:
        """A socket that listens on any free port of a host, for a server in this process."""

        def bind() -> socket.socket:
            with Path("/run/netns", self._spaces[name]).open() as space:
                # The namespace is that of this thread alone.
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return socket.create_server((self.addresses[name], 0))

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(bind).result()

    def disconnect(self, name: str) -> None:
        """Pull a host's cable: nobody hears of it, or of its connections."""
        _ip("-n", self._spaces[name], "link", "set", _CARD, "down")

    def connect(self, name: str) -> None:
        """Plug a host's cable in."""
        _ip("-n", self._spaces[name], "link", "set", _CARD, "up")

    def end(self) -> None:
        """End the hosts, with all their processes."""
        for name, space in self._spaces.items():
            if Path("/run/netns", space).exists():
                for number in self.processes(name):
                    subprocess.run(["kill", "-KILL", str(number)], check=False, capture_output=True)
                _ip("netns", "del", space)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
