"""A way to object storage that can be cut off for a while."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit

from experiments.faults.mlflow_server import LOOPBACK

_LOOK_SECONDS = 0.2
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Server(ThreadingTCPServer):
    daemon_threads = True


class StorageGate:
    """A port on loopback that leads to an endpoint of object storage; while it is shut, it answers 503.

    No byte is changed on the way: the storage checks a signature with the host that the request names, which
    is that of the gate.

    Args:
        endpoint: Address of the storage, `http://HOST:PORT`.

    Attributes:
        url: Address of the gate.
        refused: How many requests were answered with 503.
    """

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._storage = parts.hostname or "", parts.port or 80
        self._is_shut = threading.Event()
        self.refused = 0
        forward = self._forward

        class Connection(BaseRequestHandler):
            def handle(self) -> None:
                # A client or a storage that goes away ends its connection, and no other.
                with suppress(OSError):
                    forward(self.request)

        self._server = _Server((LOOPBACK, 0), Connection)
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}"

    def __enter__(self) -> "StorageGate":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_shut.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Answer every request with status 503 while the block runs; connections that are open end."""
        self._is_shut.set()
        try:
            yield
        finally:
            self._is_shut.clear()

    def _forward(self, client: socket.socket) -> None:
        if self._is_shut.is_set():
            client.settimeout(_LOOK_SECONDS)
            request = b""
            while b"\r\n\r\n" not in request and (data := client.recv(2**16)):
                request += data
            client.sendall(_REFUSAL)
            self.refused += 1
            return
        with socket.create_connection(self._storage) as storage:
            other = {client: storage, storage: client}
            while not self._is_shut.is_set():
                for end in select.select([*other], [], [], _LOOK_SECONDS)[0]:
                    data = end.recv(2**16)
                    if not data:
                        return
                    other[end].sendall(data)
