"""Limits shared by several parts of p2pinfer."""

NARROW_ROWS_MAX = 7
"""1 to 7 rows run in one family of matrix kernels, more in another."""

WIDE_ROWS_MAX = 48
"""From 64 rows on llama.cpp picks another attention kernel, and rows are not the same bits."""

BLOCK_ROWS = 64
"""The fewest for that kernel. Decodes of 512 rows take 4 % less time a row, and a chain of stages
would stand idle for eight times as long until it is filled."""

ROWS_PER_DECODE_MAX = BLOCK_ROWS

STEPS_IN_FLIGHT_MAX = 8
"""Per session: enough prompt chunks to keep every stage of a chain busy, few enough to be fair."""

SESSIONS_DEFAULT = 8
"""Per peer: one decode serves all of them, and each holds KV cells of its own."""

CONTEXT_DEFAULT = 4096
"""Positions per session. The default model: 0.75 KiB a position and layer, so 240 MiB a stage."""

AUDIT_RATE_DEFAULT = 0.1
"""Share of stages audited by default: it costs a tenth more work."""
