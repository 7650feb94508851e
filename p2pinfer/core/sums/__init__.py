"""Sums of numbers that members encrypt, under a key that none of them holds.

`p2pinfer.core.sums.member` is what a round uses; the rest is what it is made of.
"""

from p2pinfer.core.sums.layout import BadSum
from p2pinfer.core.sums.member import (
    CONTEXT_BYTES,
    HELLO_BYTES,
    NUMBERS_MAX,
    PUBLIC_BYTES,
    SEALED_BYTES,
    SETS_MAX,
    SUMMED_MIN,
    SumMember,
    SumRefused,
    default_threshold,
    encrypted_bytes,
    least_summed,
    share_bytes,
)
from p2pinfer.core.sums.parameters import MEMBERS_MAX, NUMBER_MAX

__all__ = [
    "CONTEXT_BYTES",
    "HELLO_BYTES",
    "MEMBERS_MAX",
    "NUMBERS_MAX",
    "NUMBER_MAX",
    "PUBLIC_BYTES",
    "SEALED_BYTES",
    "SETS_MAX",
    "SUMMED_MIN",
    "BadSum",
    "SumMember",
    "SumRefused",
    "default_threshold",
    "encrypted_bytes",
    "least_summed",
    "share_bytes",
]
