"""Captions of a small data set, made with a server of the test."""

import json
from typing import Any

from data_catalog.captions.llm.captioner import make_llm_captions
from data_catalog.captions.llm.llm_settings import ClientSettings, LlmCaptionSettings
from data_catalog.progress import Progress, no_progress
from data_catalog.tables.table import Table
from tests.data_catalog.captions.llm.chat_server import ChatServer, fitting_answer, is_choice

SAMPLES = 14
QUESTIONS = SAMPLES * 5

Asked = tuple[str, dict[str, Any], dict[str, Any]]
"""Source, request and answer."""


def caption(samples: Table, server: ChatServer, asking: Progress = no_progress, **settings: Any) -> Table:
    client_settings = {"concurrency": 4, "first_wait_seconds": 0.01, "timeout_seconds": 20}
    model_settings = {"model": "tiny"}
    for name, value in settings.items():
        (client_settings if name in ClientSettings.model_fields else model_settings)[name] = value
    return make_llm_captions(
        samples,
        LlmCaptionSettings(**model_settings),
        ClientSettings(endpoint=server.url, **client_settings),
        asking=asking,
    )


def list_asked(server: ChatServer) -> list[Asked]:
    """Source, request and answer of every request; the source of step two is `choice`."""
    hints = {"side by side": "JOINT", "visible-light": "RGB", "near-infrared": "NIR", "thermal": "TIR"}
    found = []
    for request in server.requests:
        text = request["messages"][1]["content"][-1]["text"].splitlines()[0]
        source = "choice" if is_choice(request) else next(hints[hint] for hint in hints if hint in text)
        found.append((source, request, json.loads(fitting_answer(request))))
    return found


def command(samples: Table, url: str, *more: str) -> list[str]:
    return [
        *("captions", "--catalog", samples.catalog, "--captioner", "llm", "--endpoint", url),
        *("--model", "tiny", "--concurrency", "4", *more),
    ]
