"""An S3 server on loopback with a private bucket, which can fail."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.services import LOOPBACK

BUCKET = "two-hosts"
REGION = "us-east-1"


class ObjectStore:
    """An S3 server with one bucket, `BUCKET`.

    As with a private bucket of S3, requests without credentials are refused.

    Args:
        listener: A socket that listens where its clients reach it; None for one on loopback.

    Attributes:
        environment: What clients need: the server's address, and credentials.
    """

    def __init__(self, listener: socket.socket | None = None) -> None:
        # These take seconds, which the other tests need not wait for.
        import boto3  # noqa: PLC0415
        from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415
        from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server  # noqa: PLC0415

        class QuietHandler(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                """Print no line for every request."""

        self._application = DomainDispatcherApplication(create_backend_app)
        self._fails = False

        def serve(listener: socket.socket) -> BaseWSGIServer:
            with listener:
                server = make_server(
                    *listener.getsockname(),
                    self._answer,
                    threaded=True,
                    request_handler=QuietHandler,
                    fd=listener.fileno(),
                )
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return server

        # This process reaches loopback alone.
        own = serve(socket.create_server((LOOPBACK, 0)))
        self._servers = [own] if listener is None else [own, serve(listener)]
        own_address, *_, address = (f"http://{server.host}:{server.port}" for server in (own, *self._servers))
        self.environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "two-hosts",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=own_address,
            region_name=REGION,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        self.client.create_bucket(Bucket=BUCKET)

    @staticmethod
    def uri(folder: str) -> str:
        """URI of a folder in the bucket."""
        return f"s3://{BUCKET}/{folder}"

    def upload(self, source: Path, folder: str) -> None:
        """Copy the files of a folder of this machine into the bucket."""
        for path in source.rglob("*"):
            if path.is_file():
                key = f"{folder}/{path.relative_to(source)}"
                self.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    def names(self, folder: str) -> list[str]:
        """Names of the objects below a folder, relative to it; of the bucket for ""; sorted."""
        prefix = f"{folder}/" if folder else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = (entry["Key"] for page in pages for entry in page.get("Contents", []))
        return sorted(key.removeprefix(prefix) for key in keys)

    def rename(self, old: str, new: str) -> None:
        """Give a folder another name."""
        for name in self.names(old):
            source = {"Bucket": BUCKET, "Key": f"{old}/{name}"}
            self.client.copy_object(Bucket=BUCKET, Key=f"{new}/{name}", CopySource=source)
            self.client.delete_object(Bucket=BUCKET, Key=source["Key"])

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()

    def events(self, folder: str) -> list[dict[str, Any]]:
        """What the journal of a run or a study says; nothing where it has none."""
        try:
            text = self.read(f"{folder}/journal.jsonl")
        except self.client.exceptions.NoSuchKey:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def journals(self, workspace: str) -> dict[str, list[dict[str, Any]]]:
        """What the journal of each run in a workspace says, by the run's name."""
        folder = f"{workspace}/train"
        names = [name for name in self.names(folder) if name.endswith("/journal.jsonl")]
        return {run: self.events(f"{folder}/{run}") for run in (name.partition("/")[0] for name in names)}

    def go_away(self, seconds: float) -> None:
        """Answer every request with status 503 for so long."""
        with self.unavailable():
            time.sleep(seconds)

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """Answer every request with status 503 while the block runs."""
        self._fails = True
        try:
            yield
        finally:
            self.recover()

    def recover(self) -> None:
        """Answer again."""
        self._fails = False

    def close(self) -> None:
        """Stop the server."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self._fails:
            return _refuse(start_response, "503 Service Unavailable", "ServiceUnavailable")
        if "HTTP_AUTHORIZATION" not in environ:
            return _refuse(start_response, "403 Forbidden", "AccessDenied")
        return self._application(environ, start_response)


def _refuse(start_response: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{status}</Message></Error>'.encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
