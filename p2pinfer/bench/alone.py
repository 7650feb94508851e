"""llama.cpp by itself, as the yardstick: the whole model in one process, greedy, no network.

Reads JSON lines ``{"prompt": [token…], "tokens": n, "as_swarm": true|false}`` and answers each with
``{"tokens": [token…], "prefill_s": …, "decode_s": …}``. With ``"sessions": n`` as many answer the
same prompt at once, a row of each in every decode; the tokens are those of the first. One thread;
prompts are read with llama.cpp's defaults, or in the swarm's regimes, where the tokens must be the
same.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from p2pinfer.core.regimes import split
from p2pinfer.engine.llama.batching import Regimes
from p2pinfer.engine.llama.binding import Settings, Slice, Span, add_servers

ROWS_MAX = 512
"""llama.cpp's own default of rows per decode."""


def _chunks(length: int, *, as_swarm: bool) -> list[tuple[int, int, int]]:
    """Return where each decode of a prompt starts and ends, and its least number of rows."""
    if not as_swarm:
        return [(at, min(length, at + ROWS_MAX), 0) for at in range(0, length, ROWS_MAX)]
    pad_to = Regimes(agree=False).pad_to
    return [(at, end, pad_to(regime)) for at, end, regime in split(0, length, blocks=True)]


def _answer(
    whole: Slice, prompt: list[int], count: int, chunks: list[tuple[int, int, int]]
) -> dict[str, object]:
    started = time.perf_counter()
    whole.truncate(0, 0)
    for at, end, pad_to in chunks:
        span = Span(0, at, np.array(prompt[at:end], np.int32), end == len(prompt))
        (logits,) = whole.decode([span], pad_to=pad_to)
    token = int(logits.argmax())
    prefilled = time.perf_counter()
    tokens = [token]
    for position in range(len(prompt), len(prompt) + count - 1):
        (logits,) = whole.decode([Span(0, position, np.array([token], np.int32))])
        token = int(logits.argmax())
        tokens.append(token)
    ended = time.perf_counter()
    return {"tokens": tokens, "prefill_s": prefilled - started, "decode_s": ended - prefilled}


def _answer_together(
    whole: Slice, prompt: list[int], count: int, chunks: list[tuple[int, int, int]], sessions: int
) -> dict[str, object]:
    """Answer in several sessions at once, after each has read the prompt by itself."""
    started = time.perf_counter()
    tokens = []
    for slot in range(sessions):
        whole.truncate(slot, 0)
        for at, end, pad_to in chunks:
            span = Span(slot, at, np.array(prompt[at:end], np.int32), end == len(prompt))
            (logits,) = whole.decode([span], pad_to=pad_to)
        tokens.append(int(logits.argmax()))
    prefilled = time.perf_counter()
    first = tokens[:1]
    for position in range(len(prompt), len(prompt) + count - 1):
        spans = [Span(n, position, np.array([token], np.int32)) for n, token in enumerate(tokens)]
        tokens = [int(each.argmax()) for each in whole.decode(spans)]
        first.append(tokens[0])
    ended = time.perf_counter()
    return {"tokens": first, "prefill_s": prefilled - started, "decode_s": ended - prefilled}


def main() -> None:
    """Answer questions with a model's file.

    The arguments name the file, the context, and whether the swarm rearranges weights, and uses
    flash attention: 0 or 1; then the addresses of llama.cpp's own servers, if these share the
    layers.
    """
    path, context = Path(sys.argv[1]), int(sys.argv[2])
    swarms = Settings(repack=sys.argv[3] == "1", flash_attention=sys.argv[4] == "1")

    def load(settings: Settings, sessions: int = 1) -> Slice:
        return Slice(
            path,
            logits=True,
            settings=settings,
            sessions=sessions,
            context=context,
            rows_max=ROWS_MAX,
        )

    servers = sys.argv[5:]
    usual = load(Settings(device=add_servers(servers) if servers else ""))
    as_swarm = usual if servers or swarms == Settings() else load(swarms)
    crowds: dict[int, Slice] = {}
    for line in sys.stdin:
        question = json.loads(line)
        prompt, is_as_swarm = question["prompt"], question["as_swarm"]
        whole = as_swarm if is_as_swarm else usual
        chunks = _chunks(len(prompt), as_swarm=is_as_swarm)
        if sessions := question.get("sessions"):
            if sessions not in crowds:
                crowds[sessions] = load(Settings(), sessions)
            crowd, count = crowds[sessions], question["tokens"]
            found = _answer_together(crowd, prompt, count, chunks, sessions)
        else:
            found = _answer(whole, prompt, question["tokens"], chunks)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
