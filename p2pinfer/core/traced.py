"""The steps of a layer that a trace of one row shows, and the products among them."""

from enum import StrEnum
from typing import Final


class Traced(StrEnum):
    """A step of a layer, by its name in a trace."""

    ATTENTION_NORM = "attn_norm"
    QUERY = "query"
    """Before biases, norms of heads and rotation, like key and value."""
    KEY = "key"
    VALUE = "value"
    ATTENTION = "attention"
    """All heads, before the matrix behind them."""
    ATTENTION_OUT = "attn_out"
    FFN_NORM = "ffn_norm"
    GATE = "ffn_gate"
    UP = "ffn_up"
    GATED = "ffn_gated"
    DOWN = "ffn_down"
    OUT = "out"
    """The residual stream behind the layer."""


LINEAR: Final = {
    Traced.QUERY: (Traced.ATTENTION_NORM, "attn_q.weight"),
    Traced.KEY: (Traced.ATTENTION_NORM, "attn_k.weight"),
    Traced.VALUE: (Traced.ATTENTION_NORM, "attn_v.weight"),
    Traced.ATTENTION_OUT: (Traced.ATTENTION, "attn_output.weight"),
    Traced.GATE: (Traced.FFN_NORM, "ffn_gate.weight"),
    Traced.UP: (Traced.FFN_NORM, "ffn_up.weight"),
    Traced.DOWN: (Traced.GATED, "ffn_down.weight"),
}
"""Each product: what goes in, and the layer's matrix."""
