"""Architectures that llama.cpp runs and that are not cut into layers, and why not."""

from collections.abc import Mapping

_SHORT_SIGHT = "its attention picks positions with an index that several layers share"
_STREAMS = "its layers pass on several streams of rows"
_STATES = "its layers keep a state, and nobody has proven yet that they split"
_LOOPS = "its layers run several times"
_AT_ONCE = "it writes all of an answer at once, and not token by token"
_PLACES = "it embeds positions beside the tokens, which slices that take rows would do again"
_NO_TEXT = "it makes embeddings, and no text"
_BY_COUNT = "llama.cpp scales its layers by how many there are"

REFUSED: Mapping[str, str] = {
    "apertus": "its layers' activations have numbers of their own, which are not shared out yet",
    "arwkv7": _STATES,
    "bailingmoe3": _STATES,
    "bert": _NO_TEXT,
    "command-r": "llama.cpp wants other tensors of it if it has 64 layers or more",
    "deci": "some of its layers have no attention, or nothing behind it",
    "deepseek32": _SHORT_SIGHT,
    "deepseek4": f"{_STREAMS}, and some take the tokens themselves",
    "dream": _AT_ONCE,
    "falcon-h1": _STATES,
    "gemma-embedding": _NO_TEXT,
    "gemma3n": "its layers take more than the rows that the layer before gives",
    "glm-dsa": _SHORT_SIGHT,
    "glm5-next": _STREAMS,
    "gpt2": _PLACES,
    "hrm_text": _LOOPS,
    "hy_v4": _STREAMS,
    "jamba": _STATES,
    "kimi-k3": "its layers look back at the outputs of earlier ones",
    "kimi-linear": _STATES,
    "llada": _AT_ONCE,
    "llada-moe": _AT_ONCE,
    "mamba": _STATES,
    "mamba2": _STATES,
    "minicpm3": _BY_COUNT,
    "minimax-01": _STATES,
    "minimax-m3": _SHORT_SIGHT,
    "mpt": _PLACES,
    "nanbeige": _LOOPS,
    "nomic-bert": _NO_TEXT,
    "plamo2": _STATES,
    "qwen4exp": _STREAMS,
    "rnd1": _AT_ONCE,
    "rwkv6": _STATES,
    "rwkv6qwen2": _STATES,
    "rwkv7": _STATES,
    "starcoder": _PLACES,
}
"""Reasons; any other architecture is refused because it is not proven."""
