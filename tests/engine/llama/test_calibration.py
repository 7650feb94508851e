"""Bounds between honest machines: measured on a model that is here, kept, and read by auditors."""

from pathlib import Path

import attrs
import pytest

from p2pinfer.core.bounds import DEFAULT_BOUNDS, Bounds
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.engine.llama import calibration
from p2pinfer.engine.llama.calibration import LEAST, MARGINS, calibrate
from p2pinfer.engine.llama.measured_bounds import bounds_of, keep_bounds
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.tiny_models import TINY, quantise, write_tiny

MODEL = ModelId("ab" * 32)


def test_a_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real differences are measured, and margins are added."""
    full, path = tmp_path / "full.gguf", tmp_path / "model.gguf"
    write_tiny(TINY["llama"], full)
    quantise(full, path, "Q4_K_M")
    names = ("values in bfloat16", "chunks of 8", "row by row", "float16 on the wire")
    chosen = tuple(each for each in calibration.VARIANTS if each.name in names)
    monkeypatch.setattr(calibration, "VARIANTS", chosen)
    store = Store(tmp_path / "store")
    model = open_parts(store, add_model(store, path, lambda *_: None), tmp_path)
    told: list[str] = []
    report = calibrate(model, told.append)
    assert told[0] == "layers 1:6"
    measured = report["measured"]
    assert list(measured) == list(names)
    for name in ("values in bfloat16", "row by row", "float16 on the wire"):
        assert 0.0 < measured[name]["median"] < measured[name]["row"], name
    bounds = Bounds(**report["bounds"])
    furthest = Bounds(
        *(max(each[kind] for each in measured.values()) for kind in ("median", "row"))
    )
    for kind in ("median", "row"):
        expected = max(getattr(LEAST, kind), getattr(MARGINS, kind) * getattr(furthest, kind))
        assert getattr(bounds, kind) == pytest.approx(expected, abs=1e-5)
    keep_bounds(store, model.id, report)
    assert attrs.asdict(bounds_of(store, model.id)) == report["bounds"]
    store.remove(model.id)
    assert bounds_of(store, model.id) == DEFAULT_BOUNDS


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"bounds": {"median": "x", "row": 1}}'])
def test_an_invalid_bounds_file_is_ignored(data: bytes, tmp_path: Path) -> None:
    """An auditor then uses the default bounds."""
    store = Store(tmp_path)
    (tmp_path / "bounds").mkdir()
    (tmp_path / "bounds" / MODEL).write_bytes(data)
    assert bounds_of(store, MODEL) == DEFAULT_BOUNDS


def test_a_full_disk_gives_a_sentence(tmp_path: Path) -> None:
    """It says which file could not be written."""
    store = Store(tmp_path)
    (tmp_path / "bounds").write_bytes(b"")
    with pytest.raises(UserError, match="bounds"):
        keep_bounds(store, MODEL, {})
