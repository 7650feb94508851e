"""Swarms of real peers that tests share, and the answers of llama.cpp alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Peer, start_peers
from tests.support.references import Reference, answers_alone

NAME = b"Smollm2 135M 8k Lc100K Mix1 Ep2"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the home directory of all processes of this folder's tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(home))


@pytest.fixture(scope="session")
def references(default_model: Path) -> list[Reference]:
    """Provide ten prompts, and llama.cpp's answers, of which a swarm must give all of one way."""
    return answers_alone(default_model)


@pytest.fixture(scope="module")
def swarm(home: Path) -> Iterator[list[Peer]]:
    """Provide three peers that share the default model's layers; tests leave them unchanged.

    Each file has its own, since views would still hold peers that other files killed and started.
    """
    peers = start_peers(home, ["1:10", "10:19", "19:29"])
    yield peers
    for peer in peers:
        peer.stop()


@pytest.fixture(scope="session")
def other_model(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the default model with another name: one byte makes it another model."""
    path = tmp_path_factory.mktemp("models") / "other.gguf"
    data = default_model.read_bytes()
    assert data.count(NAME) == 1
    path.write_bytes(data.replace(NAME, NAME.replace(b"135M", b"136M")))
    return path
