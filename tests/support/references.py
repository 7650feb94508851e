"""Prompts, and what llama.cpp alone answers to them."""

import json
import subprocess
import sys
from pathlib import Path

PROMPT_TOKENS = (1, 2, 7, 8, 40, 48, 65, 100, 230, 1152)
"""Lengths of the prompts: around the limits of regimes and chunks, and past 512 cells. None needs a
padded block, which llama.cpp alone would not run."""

ANSWER_TOKENS = 24

_REFERENCE = """
import json, sys
from itertools import islice
from llama_cpp import Llama
path, lengths, count, is_flash = json.loads(sys.argv[1])
llama = Llama(path, n_ctx=1280, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1,
              flash_attn=is_flash, verbose=False)
text = ("Why do the leaves of trees turn red in autumn, and what has the sun to do with it? "
        "A forest is not one being; it is many, which share light, water and room. " * 40)
tokens = llama.tokenize(text.encode(), add_bos=False)
answers = []
for number, length in enumerate(lengths):
    prompt = tokens[number:number + length]
    llama.reset()
    llama._ctx.kv_cache_clear()
    answers.append([prompt, list(islice(llama.generate(prompt, temp=0, repeat_penalty=1), count))])
print(json.dumps(answers))
"""


Reference = list[tuple[list[int], list[int]]]
"""Prompts, and their answers."""


def answers_alone(model: Path) -> list[Reference]:
    """Return ten prompts, and the greedy tokens of ``llama_cpp.Llama`` in our regimes.

    With flash attention, and without: all of a machine's slices take what is fast there.
    """
    found = []
    for is_flash in (True, False):
        question = json.dumps([str(model), PROMPT_TOKENS, ANSWER_TOKENS, is_flash])
        result = subprocess.run(
            [sys.executable, "-c", _REFERENCE, question], capture_output=True, check=True
        )
        found.append([(prompt, tokens) for prompt, tokens in json.loads(result.stdout)])
    return found
