"""A chat-completions server on the loopback interface that answers, or misbehaves, as a test asks."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS = 1000, 100


@dataclass(frozen=True)
class Reply:
    """What the server does with a request.

    Attributes:
        text: The model's words; None for a body of its own.
        status: HTTP status.
        body: Body instead of a completion; JSON or bytes.
        headers: More headers.
        delay_seconds: Wait before the answer.
        is_cut_off: Whether the connection breaks in the middle of the body.
        is_hung: Whether nothing ever comes.
        trickle_seconds: Wait between the bytes of the body.
        refusal: The model's refusal.
        finish_reason: Why the answer ends.
        has_usage: Whether the tokens are reported.
    """

    text: str | None = None
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    is_cut_off: bool = False
    is_hung: bool = False
    trickle_seconds: float = 0.0
    refusal: str | None = None
    finish_reason: str = "stop"
    has_usage: bool = True


def error(status: int, message: str, code: str = "", **headers: str) -> Reply:
    """An error as the protocol writes it."""
    return Reply(
        status=status, body={"error": {"message": message, "type": "error", "code": code}}, headers=headers
    )


def is_choice(request: Mapping[str, Any]) -> bool:
    """Whether the request is a question of step two."""
    return "value" not in next(iter(answer_schema(request).values())).get("properties", {})


def answer_schema(request: Mapping[str, Any]) -> dict[str, Any]:
    return dict(request["response_format"]["json_schema"]["schema"]["properties"])


def request_digest(request: Mapping[str, Any]) -> str:
    """A digest of the request's content."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def fitting_answer(request: Mapping[str, Any]) -> str:
    """A sound answer that depends on the question: to step one any value, to step two one on offer."""
    chance = int(request_digest(request)[:12], 16)
    properties = answer_schema(request)
    if is_choice(request):
        offers = listed_offers(request)
        return json.dumps({name: offers.get(name, ["unknown"])[-1] for name in properties})
    return json.dumps(
        {
            name: {
                "value": of["properties"]["value"]["enum"][
                    (chance + 7 * number) % len(of["properties"]["value"]["enum"])
                ],
                "confidence": (chance // (number + 3)) % 100 / 100,
            }
            for number, (name, of) in enumerate(properties.items())
        }
    )


def listed_offers(request: Mapping[str, Any]) -> dict[str, list[str]]:
    """Attribute to the known values that the text of step two lists."""
    [part] = request["messages"][1]["content"]
    offers: dict[str, list[str]] = {}
    for line in part["text"].splitlines():
        if not line.startswith("- "):
            continue
        name, _, readings = line[2:].partition(": ")
        values = [" ".join(reading.split()[1:-1]) for reading in readings.split("; ")]
        offers[name] = [value for value in values if value.lower() != "unknown"]
    return offers


Behaviour = Callable[[int, Mapping[str, Any]], Reply | None]
"""From a request's number, from 0, and its body to what to do; None answers soundly."""


@dataclass
class ChatServer:
    """A running server.

    Attributes:
        url: The endpoint.
        behaviour: What it does.
        requests: Bodies of all requests, in the order in which they came.
        keys: Authorization headers seen.
        answered: Digests of requests that were answered soundly, with how often.
        most_at_once: The most requests that were in flight together.
    """

    url: str = ""
    behaviour: Behaviour = lambda number, request: None
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    answered: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: dict[str, Any]) -> Reply:
        with self.lock:
            number = len(self.requests)
            self.requests.append(request)
            self.times.append(time.monotonic())
        reply = self.behaviour(number, request)
        return Reply(fitting_answer(request)) if reply is None else reply

    def cost_usd(self, prompt: float, completion: float) -> float:
        """What the answers cost that were given."""
        return self.answered.total() * (PROMPT_TOKENS * prompt + COMPLETION_TOKENS * completion) / 1e6


@contextmanager
def chat_server(behaviour: Behaviour = lambda number, request: None) -> Iterator[ChatServer]:
    """A server on a free port of 127.0.0.1 until the block ends."""
    state = ChatServer(behaviour=behaviour)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_POST(self) -> None:
            with state.lock:
                state.in_flight += 1
                state.most_at_once = max(state.most_at_once, state.in_flight)
            try:
                length = int(self.headers["Content-Length"])
                data = self.rfile.read(length)
                if len(data) < length:
                    # The client was killed while it sent.
                    self.close_connection = True
                    return
                body = json.loads(data)
                state.keys.add(self.headers["Authorization"])
                self.send(body, state.answer(body))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with state.lock:
                    state.in_flight -= 1

        def send(self, request: dict[str, Any], reply: Reply) -> None:
            if reply.is_hung:
                state.stopping.wait(30)
                self.close_connection = True
                return
            state.stopping.wait(reply.delay_seconds)
            data = reply_body(request, reply)
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in reply.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if reply.is_cut_off:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            if reply.trickle_seconds:
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if state.stopping.wait(reply.trickle_seconds):
                        return
                return
            self.wfile.write(data)
            self.wfile.flush()
            if reply.status == 200:
                with state.lock:
                    state.answered[request_digest(request)] += 1

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


def reply_body(request: Mapping[str, Any], reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    if reply.body is not None:
        return json.dumps(reply.body).encode()
    completion = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{request['model']}-2024-08-06",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text, "refusal": reply.refusal},
                "finish_reason": reply.finish_reason,
            }
        ],
    }
    if reply.has_usage:
        completion["usage"] = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        }
    return json.dumps(completion).encode()
