"""Naming a model: by a file, by its id, or by the beginning of one that is here."""

from pathlib import Path

import pytest

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.supply import name_model, open_store, open_whole
from tests.engine.toys import write_toy


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep everything in a directory of the test's own."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))


def test_a_file_is_read_once(tmp_path: Path) -> None:
    """Its id is remembered while it does not change and its parts are here, and no longer."""
    store, said = open_store(), list[str]()
    file = write_toy(tmp_path / "toy.gguf")

    def name() -> ModelId:
        return name_model(str(file), store, lambda what, *_: said.append(what))

    model = name()
    assert open_whole(model, store).id == model
    assert said
    said.clear()
    assert name() == model
    assert said == []
    store.remove(model)
    with pytest.raises(UserError, match="not all of model"):
        open_whole(model, store)
    assert name() == model
    assert said


def test_ids_and_their_beginnings(tmp_path: Path) -> None:
    """A whole id need not be here; a beginning must be of one model that is."""
    store = open_store()
    model = name_model(str(write_toy(tmp_path / "toy.gguf")), store, lambda *_: None)
    assert name_model(model[:8], store, lambda *_: None) == model
    assert name_model("0" * 64, store, lambda *_: None) == "0" * 64
    with pytest.raises(UserError, match="no model here has the id"):
        name_model("0" * 8, store, lambda *_: None)
