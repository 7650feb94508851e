"""Limits shared by several parts of p2pinfer."""

NARROW_ROWS_MAX = 7
"""1 to 7 rows run in one family of matrix kernels, more rows in another."""

WIDE_ROWS_MAX = 48
"""From 64 rows on, llama.cpp uses another attention kernel, and rows have different bits."""

BLOCK_ROWS = 64
"""The fewest rows for that kernel. Decodes of 512 rows would take 4 % less time per row, but then a
chain of stages would be idle for eight times as long until it is filled."""

ROWS_PER_DECODE_MAX = BLOCK_ROWS
"""A block: larger decodes would fill a chain of stages more slowly."""

STEPS_IN_FLIGHT_MAX = 8
"""Per session: enough prompt chunks to keep every stage of a chain busy, few enough to be fair."""

ROWS_IN_FLIGHT_MAX = 16
"""Of one answer, with those that are drafted: over links of 100 ms a chain of three stages, 20 ms
each, holds 13."""

SESSIONS_DEFAULT = 8
"""Per peer: one decode serves all of them, and each has its own KV cells."""

SESSIONS_PER_REQUESTER_DEFAULT = 8
"""At a peer: a requester that wants more must wait, so that others find room. The peers that a
gateway starts for itself take all of its sessions."""

CONTEXT_DEFAULT = 4096
"""Positions per session. The default model: 0.75 KiB per position and layer, 240 MiB a stage."""

CONTEXT_MIN = 64
"""A question of a few words in a chat's frame, and a short answer."""

LONG_CONTEXT_DEFAULT = 32_768
"""Positions of the longest session where memory and the model allow: what agents ask for at first.
Such a session's cells are made when it is opened, so that they cost nothing before."""
PROOF_RATE_DEFAULT = 0.1
"""Share of stages that open rows by default although others could run them again."""

AUDIT_RATE_DEFAULT = 0.1
"""Share of stages audited by default: a tenth more work."""
