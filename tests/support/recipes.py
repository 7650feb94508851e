"""What a tiny model of each architecture is made of, and where the conformance suite cuts it.

Windows are 16 positions, so that a prompt runs far out of a windowed layer's sight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.support.model_factory import EXPERTS, Plain, Recipe
from tests.support.tiny_models import FEED_FORWARD, HEADS, WIDTH

HEAD_WIDTH = WIDTH // HEADS
WINDOW_TOKENS = 16

SIGMOID = 2

_SHARED = {"expert_shared_count": 1, "expert_shared_feed_forward_length": FEED_FORWARD // 2}
_ROUTED = {"expert_gating_func": SIGMOID, "expert_weights_scale": 2.5, "expert_weights_norm": True}
_WINDOW: dict[str, Plain] = {"attention.sliding_window": WINDOW_TOKENS}
_STRETCHED: dict[str, Plain] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
_GRANITE: dict[str, Plain] = {
    "logit_scale": 8.0,
    "residual_scale": 0.22,
    "embedding_scale": 12.0,
    "attention.scale": 0.015625,
}
_LATENT: dict[str, Plain] = {
    **EXPERTS,
    **_ROUTED,
    "expert_shared_count": 1,
    "attention.q_lora_rank": 64,
    "attention.kv_lora_rank": 128,
    "attention.key_length_mla": 96,
    "attention.value_length_mla": HEAD_WIDTH,
    "attention.key_length": 160,
    "attention.value_length": 128,
    "attention.head_count_kv": 1,
    "rope.dimension_count": 32,
}
_EPSILON: dict[str, Plain] = {"attention.layer_norm_epsilon": 1e-5}
_GEMMA4: dict[str, Plain] = {
    **_WINDOW,
    "attention.sliding_window_pattern": [layer % 4 < 3 for layer in range(8)],
    "attention.head_count_kv": [2, 2, 2, 1] * 2,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "attention.key_length_swa": HEAD_WIDTH,
    "attention.value_length_swa": HEAD_WIDTH,
    "attention.shared_kv_layers": 0,
    "embedding_length_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "rope.dimension_count": 128,
    "rope.dimension_count_swa": HEAD_WIDTH,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
}
_FULL_EVERY_FOURTH: dict[str, Plain] = {
    **EXPERTS,
    **_WINDOW,
    "attention.sliding_window_pattern": [layer % 4 != 0 for layer in range(8)],
    "attention.head_count": [4, 2, 2, 2] * 2,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
}
_GLM: dict[str, Plain] = {
    **EXPERTS,
    **_ROUTED,
    "expert_shared_count": 1,
    "leading_dense_block_count": 2,
}
_SECTIONS: dict[str, Plain] = {
    "rope.dimension_sections": [8, 12, 12, 0],
    "n_deepstack_layers": 3,
}


_DELTA: dict[str, Plain] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 256,
    "ssm.state_size": 64,
    "ssm.time_step_rank": 4,
    "ssm.group_count": 2,
    "full_attention_interval": 4,
    "rope.dimension_sections": [8, 12, 12, 0],
}
_MAMBA: dict[str, Plain] = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 512,
    "ssm.state_size": 64,
    "ssm.time_step_rank": 8,
    "ssm.group_count": 2,
}
_ONE_SHARED: dict[str, Plain] = {"expert_shared_feed_forward_length": FEED_FORWARD // 2}


_SCOUT: dict[str, Plain] = {**EXPERTS, "expert_used_count": 1}
_STEP: dict[str, Plain] = {
    **EXPERTS,
    **_WINDOW,
    "expert_shared_feed_forward_length": FEED_FORWARD // 2,
    "leading_dense_block_count": 2,
    "attention.sliding_window_pattern": [layer % 4 != 0 for layer in range(9)],
    "attention.head_count": [4, 2, 2, 2] * 2 + [4],
    "rope.freq_base": 5e6,
    "rope.freq_base_swa": 1e4,
    "rope.dimension_count_swa": HEAD_WIDTH,
    "swiglu_clamp_exp": [0.0, 0.0, 0.5, 0.0, 1.5, 0.0, 0.0, 0.2, 0.0],
    "swiglu_clamp_shexp": [0.0, 0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.1],
}


@dataclass(frozen=True)
class Case:
    """A tiny model, and the bounds at which it is cut."""

    recipe: Recipe
    bounds: Sequence[int] = (1, 3, 4)


def _case(
    architecture: str,
    metadata: Mapping[str, Plain] = {},
    layers: int = 5,
    bounds: Sequence[int] = (1, 3, 4),
    without: Sequence[str] = (),
    scales: tuple[str, ...] = (),
    drafting: int = 0,
) -> Case:
    return Case(Recipe(architecture, layers, metadata, without, scales, drafting), bounds)


CASES = {
    "afmoe": _case(
        "afmoe",
        {**EXPERTS, **_ROUTED, **_WINDOW, "expert_shared_count": 1, "leading_dense_block_count": 2},
        9,
        (1, 3, 4, 6),
    ),
    "arcee": _case("arcee"),
    "arctic": _case("arctic", EXPERTS),
    "bailingmoe": _case("bailingmoe", {**EXPERTS, "expert_shared_count": 1}),
    "bailingmoe2": _case(
        "bailingmoe2",
        {**EXPERTS, **_SHARED, **_ROUTED, "leading_dense_block_count": 2},
    ),
    "dbrx": _case("dbrx", {**EXPERTS, **_EPSILON, "attention.clamp_kqv": 8.0}),
    "deepseek": _case(
        "deepseek", {**EXPERTS, "expert_shared_count": 1, "leading_dense_block_count": 2}
    ),
    "deepseek2": _case("deepseek2", {**_LATENT, "leading_dense_block_count": 2}),
    "deepseek2-softmax": _case(
        "deepseek2", {**_LATENT, "leading_dense_block_count": 2}, without=("expert_gating_func",)
    ),
    "deepseek2-lite": _case(
        "deepseek2",
        {**_LATENT, "leading_dense_block_count": 1},
        27,
        (1, 2, 25),
        without=("attention.q_lora_rank",),
    ),
    "deepseek2-drafting": _case(
        "deepseek2", {**_LATENT, "leading_dense_block_count": 2}, drafting=1
    ),
    "cohere2": _case("cohere2", {**_WINDOW, **_EPSILON, "logit_scale": 0.25}, 8, (1, 3, 4, 6)),
    "dots1": _case(
        "dots1",
        {
            **EXPERTS,
            **_ROUTED,
            "expert_shared_count": 2,
            "leading_dense_block_count": 2,
            "attention.head_count_kv": HEADS,
        },
    ),
    "ernie4_5": _case("ernie4_5"),
    "ernie4_5-moe": _case(
        "ernie4_5-moe",
        {
            **EXPERTS,
            **_SHARED,
            "leading_dense_block_count": 2,
            "interleave_moe_layer_step": 1,
        },
    ),
    "exaone-moe": _case(
        "exaone-moe",
        {**EXPERTS, **_SHARED, **_ROUTED, **_WINDOW, "leading_dense_block_count": 2},
        8,
        (1, 3, 4, 6),
    ),
    "exaone": _case("exaone"),
    "exaone4": _case("exaone4"),
    "gemma": _case("gemma"),
    "gemma2": _case(
        "gemma2",
        {**_WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        6,
        (1, 2, 3, 5),
    ),
    "gemma4": _case("gemma4", _GEMMA4, 8, (1, 3, 4, 6)),
    "gemma4-experts": _case(
        "gemma4",
        {**_GEMMA4, **EXPERTS},
        8,
        (1, 3, 4, 6),
        scales=("ffn_gate_inp.scale", "ffn_down_exps.scale"),
    ),
    "glm4": _case("glm4"),
    "glm4moe": _case("glm4moe", _GLM),
    "glm4moe-drafting": _case("glm4moe", _GLM, drafting=1),
    "gpt-oss": _case("gpt-oss", {**EXPERTS, **_WINDOW, **_STRETCHED}, 6, (1, 2, 3, 5)),
    "granite": _case("granite", _GRANITE),
    "granitemoe": _case("granitemoe", {**_GRANITE, **EXPERTS}),
    "grok": _case("grok", EXPERTS),
    "hunyuan-dense": _case("hunyuan-dense"),
    "hunyuan-moe": _case("hunyuan-moe", {**EXPERTS, "expert_shared_count": 1}),
    "hy_v3": _case("hy_v3", {**EXPERTS, **_SHARED, **_ROUTED}),
    "internlm2": _case("internlm2"),
    "jais2": _case("jais2", _EPSILON),
    "laguna": _case(
        "laguna",
        {
            **EXPERTS,
            **_SHARED,
            **_ROUTED,
            **_WINDOW,
            **_STRETCHED,
            "leading_dense_block_count": 2,
            "rope.freq_base": 5e5,
            "rope.freq_base_swa": 1e4,
        },
        9,
        (1, 4, 5, 7),
    ),
    "llama4": _case("llama4", {**_SCOUT, "interleave_moe_layer_step": 1}, 8, (1, 3, 4, 6)),
    "llama4-interleaved": _case("llama4", {**_SCOUT, "interleave_moe_layer_step": 2}, 8, (2, 3, 5)),
    "mellum": _case("mellum", {**EXPERTS, **_WINDOW, **_STRETCHED}, 8, (1, 3, 4, 6)),
    "mimo2": _case(
        "mimo2",
        {**_FULL_EVERY_FOURTH, "expert_gating_func": SIGMOID, "attention.head_count": 4},
        8,
        (1, 3, 4, 5),
    ),
    "mimo2-drafting": _case(
        "mimo2",
        {
            **EXPERTS,
            **_WINDOW,
            "attention.sliding_window_pattern": [layer % 4 != 0 for layer in range(10)],
            "attention.head_count": [4, 2] * 5,
            "expert_gating_func": SIGMOID,
            "rope.freq_base_swa": 1e4,
        },
        8,
        (1, 4, 5),
        drafting=2,
    ),
    "minicpm": _case("minicpm", {}),
    "minicpm-scaled": _case(
        "minicpm", {"residual_scale": 0.3, "embedding_scale": 9.0, "logit_scale": 1.0}
    ),
    "minimax-m2": _case("minimax-m2", {**EXPERTS, "expert_gating_func": SIGMOID}),
    "mistral3": _case(
        "mistral3",
        {"attention.temperature_scale": 0.1, "rope.scaling.original_context_length": 32},
    ),
    "mistral4": _case("mistral4", {**_LATENT, "leading_dense_block_count": 0}),
    "olmo2": _case("olmo2", {**_WINDOW, **_STRETCHED}, 8, (1, 3, 4, 6)),
    "nemotron": _case("nemotron", _EPSILON),
    "olmoe": _case("olmoe", {**EXPERTS, "attention.head_count_kv": HEADS}),
    "phimoe": _case("phimoe", EXPERTS),
    "granitehybrid": _case(
        "granitehybrid",
        {**_GRANITE, **_MAMBA, "attention.head_count_kv": [0, 0, 2, 0, 2, 0, 0]},
        7,
        (1, 3, 5),
    ),
    "lfm2": _case(
        "lfm2",
        {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 0, 2, 0, 0, 2, 0]},
        7,
        (1, 3, 5),
    ),
    "lfm2moe": _case(
        "lfm2moe",
        {
            **EXPERTS,
            "shortconv.l_cache": 3,
            "attention.head_count_kv": [0, 0, 2, 0, 0, 2, 0],
            "leading_dense_block_count": 2,
            "expert_gating_func": SIGMOID,
        },
        7,
        (1, 3, 5),
    ),
    "nemotron_h": _case(
        "nemotron_h",
        {
            **_MAMBA,
            **_EPSILON,
            "attention.head_count_kv": [0, 0, 2, 0, 0, 2, 0],
            "feed_forward_length": [0, 512, 0, 512, 0, 0, 512],
        },
        7,
        (1, 3, 5),
    ),
    "nemotron_h_moe": _case(
        "nemotron_h_moe",
        {
            **_MAMBA,
            **_EPSILON,
            **EXPERTS,
            **_SHARED,
            **_ROUTED,
            "attention.head_count_kv": [0, 0, 2, 0, 0, 2, 0],
            "feed_forward_length": [0, 512, 0, 512, 0, 0, 512],
        },
        7,
        (1, 3, 5),
    ),
    "qwen35": _case("qwen35", _DELTA, 8, (1, 3, 4, 6)),
    "qwen35moe": _case("qwen35moe", {**_DELTA, **EXPERTS, **_ONE_SHARED}, 8, (1, 3, 4, 6)),
    "qwen3next": _case("qwen3next", {**_DELTA, **EXPERTS, **_ONE_SHARED}, 8, (1, 3, 4, 6)),
    "qwen2moe": _case(
        "qwen2moe", {**EXPERTS, "expert_shared_feed_forward_length": FEED_FORWARD // 2}
    ),
    "qwen3vl": _case("qwen3vl", _SECTIONS, 6, (1, 2, 4)),
    "qwen3vlmoe": _case("qwen3vlmoe", {**EXPERTS, **_SECTIONS}, 6, (1, 2, 4)),
    "seed_oss": _case("seed_oss"),
    "smollm3": _case("smollm3", {}, 10, (1, 3, 4, 6)),
    "starcoder2": _case("starcoder2", _EPSILON),
    "step35": _case("step35", _STEP, 9, (1, 3, 4, 6)),
    "step35-drafting": _case(
        "step35",
        {
            **_STEP,
            "attention.head_count": [4, 2, 2, 2] * 2 + [4, 2],
            "attention.sliding_window_pattern": [layer % 4 != 0 for layer in range(10)],
            "swiglu_clamp_exp": [0.0, 0.0, 0.5, 0.0, 1.5] * 2,
            "swiglu_clamp_shexp": [0.0, 0.7, 0.0, 0.0, 0.0] * 2,
        },
        8,
        (1, 4, 5),
        drafting=2,
    ),
}
"""By the name that tests call them; the architecture is the recipe's."""
