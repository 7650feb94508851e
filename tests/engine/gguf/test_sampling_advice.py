"""How a model wants to be sampled, as its file says or a table for the default model."""

from pathlib import Path

import gguf
import pytest

from p2pinfer.core.sampling import Sampling, sampling_of
from p2pinfer.engine.gguf.reader import GgufHeader
from p2pinfer.engine.gguf.sampling_advice import DEFAULT_MODEL, TABLE, Advice, advice_of
from p2pinfer.engine.gguf.values import Array, Value, ValueType
from p2pinfer.engine.store.assemble import open_parts
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.stored import model_of

OTHER = model_of("other", {}).id
KEYS = gguf.Keys.General


def header(**values: Value | Array) -> GgufHeader:
    """Return a header that recommends so."""
    names = {name: getattr(KEYS, f"SAMPLING_{name.upper()}") for name in values}
    return GgufHeader("m.gguf", {names[name]: value for name, value in values.items()}, {})


def test_what_a_file_recommends_is_taken() -> None:
    """By llama.cpp's own names; what there is no sampler for is left."""
    f32, i32 = ValueType.FLOAT32, ValueType.INT32
    told = header(
        temp=Value.of(f32, 0.5),
        top_p=Value.of(f32, 0.75),
        top_k=Value.of(i32, 20),
        min_p=Value.of(f32, 0.0),
        penalty_repeat=Value.of(f32, 1.5),
        penalty_last_n=Value.of(i32, 32),
        mirostat=Value.of(i32, 2),
        sequence=Value.of(ValueType.STRING, "penalties;top_k"),
    )
    assert sampling_of(advice_of(OTHER, told).sampling) == Sampling(
        temperature=0.5, top_p=0.75, top_k=20, min_p=0.0, repeat_penalty=1.5, repeat_last_n=32
    )
    assert advice_of(OTHER, header(top_k=Value.of(i32, -1))).sampling == {"top_k": 0}


@pytest.mark.parametrize(
    "value",
    [
        Value.of(ValueType.FLOAT32, -1.0),
        Value.of(ValueType.FLOAT64, float("nan")),
        Value.of(ValueType.STRING, "hot"),
        Value.of(ValueType.BOOL, True),
        Array.of(ValueType.FLOAT32, [0.5]),
    ],
)
def test_what_makes_no_sense_is_no_advice(value: Value | Array) -> None:
    """The rest of what a stranger's file says holds."""
    told = header(temp=value, top_p=Value.of(ValueType.FLOAT32, 0.5))
    assert advice_of(OTHER, told) == Advice({"top_p": 0.5})
    assert advice_of(OTHER, header()) == Advice()


def test_the_table_holds_the_default_model(default_model: Path, tmp_path: Path) -> None:
    """By the id that its file has; it names no penalty, which would spoil code and JSON."""
    store = Store(tmp_path / "store")
    model = open_parts(store, add_model(store, default_model, lambda *_: None), tmp_path)
    assert model.id == DEFAULT_MODEL
    assert model.advice == TABLE[DEFAULT_MODEL]
    assert not any(key.startswith("general.sampling.") for key in model.header.metadata)
    assert not any(sampling_of(each.sampling).is_penalised for each in TABLE.values())


def test_a_conversation_keeps_its_own_system_message() -> None:
    """Only one without any gets what is advised."""
    asked, own = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be rude."}
    advice = Advice(system="Be kind.")
    assert advice.with_system([asked]) == [{"role": "system", "content": "Be kind."}, asked]
    assert advice.with_system([own, asked]) == [own, asked]
    assert Advice().with_system([asked]) == [asked]
