"""Requests sent by a client directly, without questions about samples."""

import asyncio
from typing import Any

from data_catalog.captions.llm.budget import Budget
from data_catalog.captions.llm.client import LlmClient
from data_catalog.captions.llm.llm_settings import ClientSettings, Prices
from data_catalog.captions.llm.responses import Completion
from tests.data_catalog.captions.llm.chat_server import COMPLETION_TOKENS, PROMPT_TOKENS, ChatServer, Reply

KEY = "sk-secret-0123456789"
PRICES = Prices(prompt=10, completion=30)
COST = (PROMPT_TOKENS * 10 + COMPLETION_TOKENS * 30) / 1e6
"""US dollars that each answer of the server costs."""


def request(number: int) -> dict[str, Any]:
    properties = {f"a{number}": {"properties": {"value": {"enum": ["x"]}}}}
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": properties}}},
    }


def ask(
    server: ChatServer | str, count: int = 1, budget: Budget | None = None, **settings: Any
) -> tuple[list[Completion | BaseException], LlmClient]:
    """The results of requests that are all sent at once, and the client that sent them."""
    url = server if isinstance(server, str) else server.url
    before = settings.pop("was_answered_before", False)
    merged = {"first_wait_seconds": 0.01, "timeout_seconds": 10, **settings}

    async def run() -> tuple[list[Completion | BaseException], LlmClient]:
        client_settings = ClientSettings(endpoint=url, **merged)
        counted = budget or Budget(client_settings.prices, client_settings.budget_usd, 200)
        client = LlmClient(client_settings, counted, was_answered_before=before)
        try:
            return (
                await asyncio.gather(
                    *(client.complete(request(number)) for number in range(count)), return_exceptions=True
                ),
                client,
            )
        finally:
            await client.close()

    return asyncio.run(run())


def failing(reply: Reply, *numbers: int) -> Any:
    """Behaviour that gives a reply to the requests with these numbers."""
    return lambda number, request: reply if number in numbers else None
