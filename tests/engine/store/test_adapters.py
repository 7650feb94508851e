"""Adapters are added to the model that they were made for; of others, one sentence says why not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.core.manifest import Manifest, parse_manifest
from p2pinfer.engine.gguf.adapters import is_adapter
from p2pinfer.engine.gguf.reader import Tensor, read_header
from p2pinfer.engine.store.adapters import adapter_bytes, add_adapter
from p2pinfer.engine.store.proof_keys import ProofKeys
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from peers.audits.steps import StepsJudge
from tests.support.adapters import write_adapter
from tests.support.tiny_models import TINY, WIDTH, write_tiny
from tests.support.toys import quiet

Q = "blk.2.attn_q.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Give tiny models by their architectures."""
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.gguf" for name in ("llama", "qwen3", "mixtral")}
    for name, path in paths.items():
        write_tiny(TINY[name], path)
    return paths


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Give an empty store."""
    return Store(tmp_path / "store")


def only_q(tensor: Any) -> bool:
    """Choose one matrix."""
    return bool(tensor.name == Q)


def test_a_child_shares_its_bases_parts(
    models: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    """It is described by one manifest, which holds its base's; removing it leaves the base."""
    base = add_model(store, models["llama"], quiet)
    before = store.used_bytes()
    write_adapter(models["llama"], tmp_path / "adapter.gguf")
    child = add_adapter(store, tmp_path / "adapter.gguf", base)
    assert child == add_adapter(store, tmp_path / "adapter.gguf", base)
    assert child.id != base.id
    assert parse_manifest(child.encode(), child.id) == child == store.manifest(child.id)
    assert (child.base, child.parts[: len(base.parts)]) == (base, base.parts)
    assert [part.name for part in child.adapter] == [f"adapter.layer.{i}" for i in range(7)]
    assert child.needed(2, 4)[-2:] == ("adapter.layer.2", "adapter.layer.3")
    assert child.layer_size(2) == base.layer_size(2) + child.part("adapter.layer.2").size
    added = sum(part.size for part in child.adapter) + len(child.encode())
    assert store.used_bytes() - before <= added + (64 << 10)
    assert [child.is_adapted(layer) for layer in (6, 7)] == [True, False]
    keys = ProofKeys(store, lambda count: bytes(count))
    assert StepsJudge(keys, store, base).covers([1, 2])
    assert not StepsJudge(keys, store, child).covers([1, 2])  # honest steps would look false
    store.remove(child.id)
    assert all(store.held(part) for part in base.parts)
    assert not any(store.held(part) for part in child.adapter)


def test_halves_are_stored_as_float32(
    models: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    """With the same numbers, and so under the same name."""
    base = add_model(store, models["llama"], quiet)
    ids = set()
    for dtype in (np.float16, np.float32):
        write_adapter(models["llama"], tmp_path / "half.gguf", only_q, dtype=np.float16)
        if dtype is np.float32:
            reader = gguf.GGUFReader(tmp_path / "half.gguf")
            whole = {each.name: each.data.astype(np.float32) for each in reader.tensors}
            pair = (whole[f"{Q}.lora_a"], whole[f"{Q}.lora_b"])
            (tmp_path / "half.gguf").write_bytes(adapter_bytes(base, {Q: pair}, 4.0))
        ids.add(add_adapter(store, tmp_path / "half.gguf", base, "same").id)
    assert len(ids) == 1
    assert is_adapter(read_header(tmp_path / "half.gguf"))


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Write an adapter again after its values and tensors were changed."""
    reader = gguf.GGUFReader(path)
    values = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    tensors = {each.name: np.array(each.data) for each in reader.tensors}
    change(values, tensors)
    out = gguf.GGUFWriter(path.with_suffix(".changed"), values.pop("architecture", "llama"))
    for key, value in values.items():
        add = out.add_string if isinstance(value, str) else out.add_float32
        add(key, value)
    for name, data in tensors.items():
        out.add_tensor(name, data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path.with_suffix(".changed")


def moved(old: str, new: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Have the adapter change another tensor."""

    def change(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        for half in (".lora_a", ".lora_b"):
            tensors[new + half] = tensors.pop(old + half)

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Set a value or a tensor; None leaves it out."""

    def change(values: dict[str, Any], tensors: dict[str, Any]) -> None:
        into = tensors if name.startswith(("blk.", "x")) else values
        if value is None:
            del into[name]
        else:
            into[name] = value

    return change


def zeros(*shape: int) -> Any:
    """Make a tensor."""
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("general.type", "model"), "is no adapter"),
        (put("adapter.type", "ia3"), "of the kind ia3, not a plain LoRA"),
        (put("adapter.alora.x", 1.0), "of the kind an aLoRA"),
        (put("architecture", "qwen3"), "made for a model of the kind qwen3, and .* is a llama"),
        (put("adapter.lora.alpha", None), "lacks adapter.lora.alpha"),
        (put(f"{Q}.lora_a", None), "without its lora_a"),
        (put(f"{Q}.lora_b", None), "without its lora_b"),
        (put(f"{Q}.lora_b", zeros(WIDTH, 3)), "lora_a has rank 4 and lora_b 3"),
        (put(f"{Q}.lora_a", zeros(4, 128)), "of 256 x 128, and that of .* is 256 x 256"),
        (put("x.weight", zeros(3)), "belongs to no LoRA"),
        (moved(Q, "blk.7.attn_q.weight"), "changes 'blk.7.attn_q.weight', which .* lacks"),
        (moved(Q, "blk.2.attn_norm.weight"), "no plain matrix"),
        (moved(Q, "output_norm.weight"), "which is not served"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    why: str,
    models: dict[str, Path],
    store: Store,
    tmp_path: Path,
) -> None:
    """In one sentence each, and nothing is stored."""
    base = add_model(store, models["llama"], quiet)
    write_adapter(models["llama"], tmp_path / "adapter.gguf", only_q)
    path = rewritten(tmp_path / "adapter.gguf", change)
    with pytest.raises((BadModelFile, UnsupportedModel), match=why):
        add_adapter(store, path, base)
    assert store.models() == [base]


def test_norms_beside_an_adapter_are_left_out(
    models: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    """As llama.cpp leaves them out."""
    base = add_model(store, models["llama"], quiet)
    write_adapter(models["llama"], tmp_path / "adapter.gguf", only_q)
    with_norm = rewritten(
        tmp_path / "adapter.gguf", put("blk.2.attn_norm.weight", zeros(WIDTH) + 1)
    )
    plain = rewritten(tmp_path / "adapter.gguf", lambda *_: None)
    one, other = (add_adapter(store, path, base, "x") for path in (with_norm, plain))
    assert one == other


def is_called(name: str, tensor: Tensor) -> bool:
    """Whether a tensor has this name."""
    return tensor.name == name


def test_a_tied_embedding_is_not_changed(
    models: dict[str, Path], store: Store, tmp_path: Path
) -> None:
    """Llama.cpp ends on such an adapter."""
    base = add_model(store, models["qwen3"], quiet)
    for name, why in (("token_embd.weight", "its head too"), (Q, "")):
        path = tmp_path / f"{name}.gguf"
        write_adapter(models["qwen3"], path, partial(is_called, name))
        if why:
            with pytest.raises(UnsupportedModel, match=why):
                add_adapter(store, path, base)
        else:
            assert add_adapter(store, path, base).base == base


def test_no_adapter_on_an_adapter(models: dict[str, Path], store: Store, tmp_path: Path) -> None:
    """And none on a model that is not here."""
    base = add_model(store, models["llama"], quiet)
    write_adapter(models["llama"], tmp_path / "adapter.gguf", only_q)
    child = add_adapter(store, tmp_path / "adapter.gguf", base)
    with pytest.raises(UserError, match=f"--base {base.id[:12]}"):
        add_adapter(store, tmp_path / "adapter.gguf", child)
    other: Manifest = base
    with pytest.raises(UserError, match="is not here"):
        add_adapter(Store(tmp_path / "empty"), tmp_path / "adapter.gguf", other)
