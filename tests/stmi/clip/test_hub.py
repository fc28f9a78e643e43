"""A CLIP by name where the Hugging Face hub cannot be reached: from the cache, or refused at once."""

import shutil
import socket
import time

import open_clip
import pytest
from huggingface_hub import constants

from stmi import network
from stmi.clip import clip_files, hub
from stmi.clip.loading import load_clip
from stmi.errors import ClipFileError
from tests.stmi.clip.test_loading import publish, write_with_all_merges

REVISION = "0" * 40
UNRESOLVABLE = "http://no-such-host.invalid"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def port():
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Name of a small CLIP whose weights are on the hub."""
    source = publish(monkeypatch, tmp_path / "none")
    published = {"hf_hub": "own/tiny/", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"own": published})
    return source


def unreachable(monkeypatch, kind, port):
    if kind == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    endpoint = UNRESOLVABLE if kind == "unresolvable" else f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)


KINDS = pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("refused", "127.0.0.1: Connection refused"),
        ("unresolvable", "no-such-host.invalid: "),
        ("offline", "HF_HUB_OFFLINE is set"),
    ],
)


@KINDS
def test_a_name_without_a_network_is_refused_at_once_with_the_remedy(monkeypatch, source, port, kind, reason):
    unreachable(monkeypatch, kind, port)
    began = time.perf_counter()
    with pytest.raises(ClipFileError) as refused:
        load_clip(source)
    assert time.perf_counter() - began < network.PATIENCE_SECONDS
    message = str(refused.value)
    assert "\n" not in message
    for part in (f"'{source}'", reason, "--set model.clip.source=DIR", "--clip DIR"):
        assert part in message


@KINDS
def test_a_name_in_the_cache_is_loaded_without_a_network(
    monkeypatch, source, port, tmp_path, own_cache, kind, reason
):
    folder = write_with_all_merges(tmp_path / "folder")
    stored = own_cache / "models--own--tiny"
    (stored / "snapshots" / REVISION).mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(REVISION)
    shutil.copy(folder / clip_files.WEIGHTS_FILE, stored / "snapshots" / REVISION)
    unreachable(monkeypatch, kind, port)
    loaded, expected = load_clip(source), load_clip(folder)
    assert loaded.embed_dim == expected.embed_dim
    for name, value in expected.model.state_dict().items():
        assert (loaded.model.state_dict()[name] == value).all()
    assert constants.HF_HUB_OFFLINE is (kind == "offline")


@pytest.mark.parametrize("through", ["endpoint", "proxy"])
def test_a_hub_that_accepts_connections_is_asked(monkeypatch, through):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address if through == "endpoint" else UNRESOLVABLE)
        if through == "proxy":
            monkeypatch.setenv("http_proxy", address)
        assert hub.why_unreachable() is None


def test_a_host_that_the_proxy_is_not_for_is_asked_itself(monkeypatch, port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert hub.why_unreachable() == "127.0.0.1: Connection refused"
