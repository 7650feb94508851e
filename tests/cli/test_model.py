"""``p2pinfer model``: what it prints, where, and with which exit code."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from p2pinfer.cli import main
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.gguf.values import Value, ValueType
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.store import Store
from p2pinfer.node import model_supply
from p2pinfer.node.model_supply import open_store
from tests.support.adapters import write_adapter
from tests.support.stored import flip
from tests.support.toys import write_toy


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep everything in the test's own directory."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a small model's file."""
    return write_toy(tmp_path / "m.gguf")


class Command:
    """Runs commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        """Run ``p2pinfer model``, keep what it prints, and return its exit code."""
        command = ["p2pinfer", "model", *map(str, words)]
        self._monkeypatch.setattr(sys, "argv", command)
        code = 0
        try:
            main.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *words: object, code: int = 0) -> dict[str, Any]:
        """Run a command with --json; return the one object that it prints."""
        assert self(*words, "--json") == code, self.err
        (line,) = self.out.splitlines()
        report: dict[str, Any] = json.loads(line)
        return report


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Give the command."""
    return Command(monkeypatch, capsys)


def test_add_prints_the_id(model: Command, file: Path, home: Path) -> None:
    """Standard output is the id alone, and the same file gives the same id."""
    assert model("add", file) == 0
    (id_,) = model.out.splitlines()
    assert [found.id for found in Store(home / "data" / "store").models()] == [id_]
    assert "Toy: 4 layers, 0.0 MB, apache-2.0" in model.err
    assert model.json("add", file) == {
        "model": id_,
        "name": "Toy",
        "license": "apache-2.0",
        "base": None,
        "architecture": "llama",
        "layers": 4,
        "bytes": model.json("list")["models"][0]["bytes"],
    }


def test_list(model: Command, file: Path, home: Path) -> None:
    """Every model is listed, with how much of it is here."""
    assert model("list") == 0
    assert (model.out, model.err) == (
        "",
        "no models here; to add one: p2pinfer model add default\n",
    )
    assert model.json("list") == {"models": []}
    model("add", file)
    id_ = model.out.strip()
    store = Store(home / "data" / "store")
    part = store.models()[0].part("layer.1")
    store.path(part).unlink()
    (listed,) = model.json("list")["models"]
    assert (listed["model"], listed["bytes"] - listed["held_bytes"]) == (id_, part.size)
    assert model("list") == 0
    assert model.out.startswith(f"{id_[:12]}    4 layers  0.0 MB, ")
    assert model.out.endswith(" Toy\n")
    assert "100 % here" not in model.out


def test_show(model: Command, file: Path, home: Path) -> None:
    """A model is shown by the beginning of its id: licence, sizes, and each part."""
    model("add", file)
    id_ = model.out.strip()
    store = Store(home / "data" / "store")
    store.path(store.models()[0].part("layer.1")).unlink()
    assert model("show", id_[:6]) == 0
    lines = model.out.splitlines()
    assert lines[:3] == [f"model       {id_}", "name        Toy", "licence     apache-2.0"]
    assert lines[6:] == ["here        7 of 8 parts, 0.0 MB; missing: layer.1"]
    assert model.out.count("apache-2.0") == 1
    assert model("show", id_[:6], "--parts") == 0
    lines = model.out.splitlines()
    here = {line.split()[0]: line.split()[-1] for line in lines[8:]}
    assert here == {
        **dict.fromkeys(("metadata", "tokenizer", "embedding", "output"), "yes"),
        **dict.fromkeys(("layer.0", "layer.2", "layer.3"), "yes"),
        "layer.1": "no",
    }
    shown = model.json("show", id_)
    assert [part["name"] for part in shown["parts"] if not part["held"]] == ["layer.1"]
    assert shown["license"] == "apache-2.0"


def test_show_accepts_the_word_default(
    model: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model was added, the error says how to add it."""
    monkeypatch.setenv("P2PINFER_DEFAULT_MODEL", str(file))
    assert model("show", "default") == 2
    assert "p2pinfer model add default" in model.err
    assert model_supply.name_model("default", model_supply.open_store(), lambda *_: None)
    assert model("show", "default") == 0
    assert "here        all of it, in 8 parts" in model.out


def test_verify_names_what_is_damaged(model: Command, file: Path, home: Path) -> None:
    """Damage is exit code 4, and adding the file again repairs it."""
    model("add", file)
    id_ = model.out.strip()
    assert model("verify", id_) == 0
    assert model.out == "8 of 8 parts are here; damaged: none\n"
    store = Store(home / "data" / "store")
    (manifest,) = store.models()
    flip(store.path(manifest.part("layer.2")), 300)
    store.path(manifest.part("output")).write_bytes(b"short")
    assert model("verify", id_) == 4
    assert model.out == "8 of 8 parts are here; damaged: layer.2, output\n"
    assert "layer.2 (" in model.err
    assert "is damaged on disk, in chunk 0" in model.err
    assert f"output: to fetch what is missing, run  p2pinfer model verify {id_[:12]}" in model.err
    report = {"model": id_, "verified": 6, "damaged": [], "repaired": []}
    report["unfinished"] = ["layer.2", "output"]
    assert model.json("verify", id_, code=4) == report
    assert "layer.2, output: to fetch what is missing" in model.err  # as long as it is
    assert model("add", file) == 0
    flip(store.path(manifest.part("layer.0")), 0)
    report = {"model": id_, "verified": 8, "damaged": ["layer.0"], "repaired": []}
    report["unfinished"] = ["layer.0"]
    assert model.json("verify", id_, code=4) == report


def test_rm_keeps_parts_that_others_share(model: Command, file: Path, tmp_path: Path) -> None:
    """Removing one of two models leaves the other whole."""
    model("add", file)
    first = model.out.strip()
    other = Value.of(ValueType.STRING, "Other")
    model("add", write_toy(tmp_path / "o.gguf", general__name=other))
    second = model.out.strip()
    assert model("rm", first) == 0
    assert model.out.startswith("removed Toy, freeing ")
    report = {"model": second, "verified": 8, "damaged": [], "repaired": [], "unfinished": []}
    assert model.json("verify", second) == report
    assert model.json("rm", second)["freed_bytes"] > 0
    assert model.json("list") == {"models": []}


def test_unknown_and_ambiguous_ids_are_refused(
    model: Command, file: Path, tmp_path: Path, home: Path
) -> None:
    """With a sentence and exit code 2."""
    model("add", file)
    ids = [model.out.strip()]
    for number in range(16):  # by then two begin with the same digit
        name = Value.of(ValueType.STRING, f"Toy {number}")
        model("add", write_toy(tmp_path / f"{number}.gguf", general__name=name))
        ids.append(model.out.strip())
    firsts = [id_[0] for id_ in ids]
    twice = next(digit for digit in firsts if firsts.count(digit) > 1)
    for command in ("show", "verify", "rm"):
        assert model(command, twice) == 2
        assert f"the ids of {firsts.count(twice)} models begin with {twice!r}: " in model.err
        for nothing in ("x", "", "f" * 64):
            assert model(command, nothing) == 2
            assert "p2pinfer model list" in model.err
    assert len(model.json("list")["models"]) == 17


def test_add_refuses_what_is_no_model_or_too_large(
    model: Command, file: Path, tmp_path: Path
) -> None:
    """With a sentence and exit code 2."""
    (tmp_path / "text").write_text("hello")
    assert model("add", tmp_path / "text") == 2
    assert model.err == "p2pinfer: text is not a GGUF file\n"
    assert model("add", tmp_path / "nowhere") == 2
    assert model("add", file, "--quota", "10kB") == 2
    assert "exceed the store's quota of 0.0 MB" in model.err
    assert "raise --quota, or remove a model (p2pinfer model rm ID)" in model.err
    for quota in ("-1", "nan", "much"):
        assert model("add", file, "--quota", quota) == 2
        assert "is not a size such as" in model.err
    assert model.json("list") == {"models": []}


def test_rm_frees_all_that_was_made_of_a_model(
    model: Command, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slices too, and what the peers of ``demo`` keep in their own homes."""
    peer = home / "data" / "demo" / "3-peers" / "1"
    id_ = ""
    for each in (peer, home):
        monkeypatch.setenv("P2PINFER_HOME", str(each))
        id_ = model.json("add", file)["model"]
        store = open_store()
        manifest = store.manifest(ModelId(id_))
        assert manifest
        open_parts(store, manifest, each / "cache").stage(1, 2)
    taken = sum(path.stat().st_size for path in home.rglob("*.gguf"))
    freed = model.json("rm", id_)["freed_bytes"]
    assert freed >= taken > 0
    assert list(home.rglob("*.gguf")) == []


def test_progress_is_lines_without_a_terminal(
    model: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normally an occasional line; here at once, so that the test need not wait."""
    monkeypatch.setattr("p2pinfer.cli.model_argument.PLAIN_LINE_S", 0.0)
    assert model("add", file) == 0
    assert model.err.splitlines()[0].startswith("hashing: 0.0 MB of")


def test_add_default_shows_a_bar_on_a_terminal(
    model: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word names the default model; a terminal gets a bar and no lines."""
    monkeypatch.setattr(Console, "is_terminal", True)
    assert model("add", "default") == 0
    assert len(model.out.strip()) == 64
    assert "hashing: " not in model.err
    assert "storing" in model.err


def test_an_adapter_is_added_to_its_base(
    model: Command, file: Path, home: Path, tmp_path: Path
) -> None:
    """Together they are another model, which is named by its name and shows its base."""
    base = model.json("add", file)
    adapter = tmp_path / "adapter.gguf"
    write_adapter(Path(file), adapter)
    assert model("add", str(adapter)) == 2
    assert "p2pinfer model add adapter.gguf --base MODEL" in model.err
    assert model("add", file, "--name", "x") == 2
    assert "--name is for adapters" in model.err
    assert model("add", str(adapter), "--base", "f" * 64) == 2
    assert "is not here" in model.err
    added = model.json("add", str(adapter), "--base", base["model"][:12], "--name", "changed")
    assert (added["base"], added["name"]) == (base["model"], "changed")
    assert added["bytes"] > base["bytes"]
    assert model("list") == 0
    assert f"changed, on {base['model'][:12]}" in model.out
    assert model("show", "changed") == 0
    assert f"base        {base['model']}\n            Toy, with an adapter of" in model.out
    parts = {part["name"]: part for part in model.json("show", "changed", "--parts")["parts"]}
    assert parts["adapter.layer.3"]["held"]
    model.json("add", str(adapter), "--base", base["model"], "--name", "other")
    write_adapter(Path(file), adapter, strength=2.0)
    model.json("add", str(adapter), "--base", base["model"], "--name", "other")
    assert model("show", "other") == 2
    assert "2 models have the name 'other'" in model.err
    assert model("rm", "changed") == 0
    assert len(model.json("list")["models"]) == 3
