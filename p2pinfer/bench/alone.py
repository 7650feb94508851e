"""llama.cpp by itself, as the yardstick: the whole model in one process, greedy, no network.

Reads JSON lines ``{"prompt": [token…], "tokens": n}`` and answers each with
``{"tokens": [token…], "prefill_s": …, "decode_s": …}``. Chunks and threads are the swarm's.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.engine.llama.binding import Settings, Slice, Span


def _answer(whole: Slice, prompt: list[int], count: int) -> dict[str, object]:
    started = time.perf_counter()
    whole.truncate(0, 0)
    token = -1
    for at in range(0, len(prompt), ROWS_PER_DECODE_MAX):
        chunk = np.array(prompt[at : at + ROWS_PER_DECODE_MAX], np.int32)
        is_last = at + len(chunk) == len(prompt)
        (logits,) = whole.decode([Span(0, at, chunk, is_last)])
        token = int(logits.argmax()) if is_last else token
    prefilled = time.perf_counter()
    tokens = [token]
    for position in range(len(prompt), len(prompt) + count - 1):
        (logits,) = whole.decode([Span(0, position, np.array([token], np.int32))])
        token = int(logits.argmax())
        tokens.append(token)
    ended = time.perf_counter()
    return {"tokens": tokens, "prefill_s": prefilled - started, "decode_s": ended - prefilled}


def main() -> None:
    """Serve questions about the model file and with the context that the arguments name."""
    whole = Slice(
        Path(sys.argv[1]),
        logits=True,
        settings=Settings(),
        sessions=1,
        context=int(sys.argv[2]),
    )
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(_answer(whole, question["prompt"], question["tokens"])), flush=True)


if __name__ == "__main__":
    main()
