"""Servers are asked before libraries ask them that wait; through the proxy of the environment, or none."""

import socket
import time

import pytest

from stmi.network import find_proxy, through_proxy, why_unreachable

PROXY = "http://user:secret@proxy.example:3128"


@pytest.fixture(autouse=True)
def no_proxy_is_set(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def closed():
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_this_machine_is_never_asked_through_a_proxy(monkeypatch, host, variable):
    if variable != "HTTP_PROXY":
        monkeypatch.setenv(variable, PROXY)
    monkeypatch.setenv("all_proxy", "socks5://proxy.example:1080")
    assert find_proxy(f"http://{host}:5000/x") is None
    assert through_proxy(f"http://{host}:5000/x") == ""


def test_a_proxy_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("https_proxy", PROXY)
    named = " through the proxy http://...@proxy.example:3128 (https_proxy or all_proxy)"
    assert through_proxy("https://hub.example/x") == named
    assert through_proxy("http://hub.example/x") == ""
    monkeypatch.setenv("no_proxy", "hub.example")
    assert through_proxy("https://hub.example/x") == ""


@pytest.mark.parametrize("password", ["s3cr/et", "s3cr@t/x", "s3cr?et", "s3cr#et"])
def test_no_part_of_a_password_is_named_or_looked_up(password, monkeypatch):
    def look_up(*arguments, **options):
        raise AssertionError(arguments)

    monkeypatch.setattr(socket, "create_connection", look_up)
    reason = why_unreachable(f"http://user:{password}@127.0.0.1:1")
    assert reason.startswith("malformed: expected HOST:PORT, and / ? # @")
    assert "s3cr" not in reason


def test_what_listens_can_be_asked_and_what_does_not_is_named_within_seconds(closed):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert why_unreachable(f"http://127.0.0.1:{port}") is None
        assert why_unreachable(f"//127.0.0.1:{port}") is None
    began = time.monotonic()
    assert why_unreachable(f"http://127.0.0.1:{closed}/v1") == "127.0.0.1: Connection refused"
    assert why_unreachable(f"//127.0.0.1:{closed}") == "127.0.0.1: Connection refused"
    assert "port" in why_unreachable("//127.0.0.1:none").lower()
    assert time.monotonic() - began < 2


def test_a_dead_proxy_is_named_and_not_the_server_behind_it(monkeypatch, closed):
    proxy = f"127.0.0.1:{closed}"
    monkeypatch.setenv("http_proxy", proxy)
    reason = why_unreachable("http://mlflow.example:5000")
    named = f"through the proxy http://{proxy} (http_proxy or all_proxy)"
    assert reason == f"127.0.0.1: Connection refused {named}"
    # A server that is no web server has no proxy.
    assert "proxy" not in why_unreachable(f"//{proxy}")
