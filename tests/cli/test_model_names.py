"""``p2pinfer model find`` and ``suggest``, and ``add`` of a published model."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_model import Command
from tests.support.fake_hub import FakeHub, fake_hub
from tests.support.toys import write_toy


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep everything in the test's own directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("OLLAMA_MODELS", "P2PINFER_YES", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give the command."""
    return Command(monkeypatch, capsys)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[FakeHub]:
    """Run a hub that publishes a toy."""
    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        data = write_toy(home / "toy.gguf").read_bytes()
        running.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": data}
        yield running


class Terminal(io.StringIO):
    """A person at a terminal."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def test_a_download_needs_consent(model: Command, fake: FakeHub) -> None:
    """Size and licence are shown first; without a terminal, --yes is needed."""
    assert model("add", "hf:owner/Toy-GGUF") == 2
    shown, refused = model.err.splitlines()
    assert shown == "hf:owner/Toy-GGUF:Q8_0: 0.0 MB in one file; licence: apache-2.0"
    agreeing = "p2pinfer model add hf:owner/Toy-GGUF:Q8_0 --yes"
    assert refused == f"p2pinfer: nothing was downloaded; to agree: {agreeing}"
    assert fake.ranges == []
    assert model("add", "hf:owner/Toy-GGUF", "--yes") == 0
    id_ = model.out.strip()
    assert len(fake.ranges) == 1
    assert model("show", id_[:8]) == 0
    assert "served from" in model.out
    assert model("add", "owner/Toy-GGUF@q8_0") == 0  # it is here
    assert model.out.strip() == id_


def test_the_environment_agrees_too(
    model: Command, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for every option; ``--model`` of other commands listens to it."""
    assert model("calibrate", "hf:owner/Toy-GGUF") == 2
    assert "to agree: p2pinfer model add" in model.err
    monkeypatch.setenv("P2PINFER_YES", "1")
    assert model("add", "hf:owner/Toy-GGUF") == 0
    assert fake.ranges == [None]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_a_terminal_is_asked(
    answer: str,
    code: int,
    model: Command,
    fake: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a yes is a yes."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert model("add", "hf:owner/Toy-GGUF") == code
    assert "Download it? [y/N] " in model.err
    assert len(fake.ranges) == (code == 0)


def test_find(model: Command, fake: FakeHub, home: Path) -> None:
    """What --model takes is the last word, and what cannot be split says why."""
    assert model("find") == 0
    assert (model.out, "no other program keeps models here" in model.err) == ("", True)
    assert model("add", "hf:owner/Toy-GGUF", "--yes") == 0
    id_ = model.out.strip()
    studio = home / ".lmstudio/models/a/b"
    studio.mkdir(parents=True)
    (studio / "broken-Q4_0.gguf").write_bytes(b"GGUF")
    broken, toy = sorted(model.json("find")["models"], key=lambda each: each["title"])
    assert toy == {
        "program": "Hugging Face",
        "model": "hf:owner/Toy-GGUF:Q8_0",
        "title": "owner/Toy-GGUF/Toy-Q8_0.gguf",
        "path": toy["path"],
        "bytes": (home / "toy.gguf").stat().st_size,
        "architecture": "llama",
        "layers": 4,
        "license": "apache-2.0",
        "refused": None,
        "id": id_,
    }
    assert (broken["layers"], broken["id"]) == (None, None)
    assert "broken-Q4_0.gguf" in broken["refused"]
    assert model("find") == 0
    lines = model.out.splitlines()
    assert lines[0].startswith("Hugging Face")
    assert lines[0].endswith("  4 layers    hf:owner/Toy-GGUF:Q8_0")
    assert lines[1].endswith("  hf:a/b:Q4_0")
    assert lines[2].endswith(broken["refused"])


def test_a_name_without_hf_gets_a_hint(model: Command, fake: FakeHub) -> None:
    """And so does what is no name at all, or a repository that has other files alone."""
    assert model("add", "owner/Toy-GGUF") == 2
    assert "or hf:owner/Toy-GGUF for a model on Hugging Face" in model.err
    assert model("add", "toy") == 2
    assert "what is here: p2pinfer model list, and p2pinfer model find" in model.err
    fake.repositories["owner/Toy"] = {"model.safetensors": b"weights"}
    assert model("add", "hf:owner/Toy") == 2
    assert model.err.endswith("with a similar name there are: hf:owner/Toy-GGUF\n")


def test_a_file_names_the_model_that_was_made_of_it(model: Command, home: Path) -> None:
    """For commands about what is here, too."""
    path = write_toy(home / "toy.gguf")
    assert model("show", str(path)) == 2
    assert (
        model.err == f"p2pinfer: {path} was not added yet; to add it: p2pinfer model add {path}\n"
    )
    assert model("add", str(path)) == 0
    assert model("show", str(path)) == 0


def test_suggest(model: Command, fake: FakeHub) -> None:
    """Models that are here come from their headers, others from the table."""
    assert model("suggest", "--memory", "8GiB", "--peers", "6") == 0
    assert model.out.splitlines()[:3] == [
        "Llama 3.3 70B  42.00 GB, 80 layers, llama3.3",
        "    fits, 13 layers a peer, each layer held 1.0 times; the requester needs 2.89 GB",
        "    --model hf:unsloth/Llama-3.3-70B-Instruct-GGUF:Q4_K_M",
    ]
    assert "    needs 9 such peers, or 10.70 GB of each of 6; the requester" in model.out
    assert "not held against the published files" in model.err
    assert model("add", "hf:owner/Toy-GGUF", "--yes") == 0
    id_ = model.out.strip()
    report = model.json("suggest", "--memory", "1GB", "--peers", "2")
    assert report["pool"] == {
        "memory_bytes": 10**9,
        "peers": 2,
        "sessions": 8,
        "context": 4096,
    }
    toy, *others = report["models"]
    assert (toy["title"], toy["model"], toy["is_here"]) == ("Toy", id_[:12], True)
    assert (toy["fits"], toy["needs_pool"], toy["source"]) == (True, False, "its header")
    assert [each["fits"] for each in others] == [False] * 6
    assert others[-1]["title"] == "DeepSeek R1"
    assert others[-1]["peers_min"] is None
    assert model("suggest", "--peers", "0") == 2
    assert model("suggest", "--memory", "8") == 2
    assert model.err == "p2pinfer: --memory 8 lacks its unit: write 8GiB, for example\n"
