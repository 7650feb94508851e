"""Names of requests' parameters: which are refused, taken for a slip of the pen, or ignored."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from p2pinfer.api.problems import Problem

_IGNORED = {
    "cache_prompt",
    "continuous_usage_stats",
    "id_slot",
    "keep_alive",
    "metadata",
    "mirostat_eta",
    "mirostat_tau",
    "model",
    "n_keep",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "provider",
    "reasoning_effort",
    "return_progress",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "timings_per_token",
    "user",
    "verbosity",
}

ONLY_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "json_schema": (),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "n_probs": (0,),
    "options": ({},),
    "parse_special": (True,),
    "prompt_logprobs": (),
    "samplers": ([],),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tfs_z": (1,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_a": (0,),
    "top_logprobs": (0,),
    "top_n_sigma": (0, -1),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "web_search_options": (),
    "xtc_probability": (0,),
}
"""Parameters that a swarm cannot honour, and the values by which they, as null, ask for nothing.
Some of them are honoured in chats alone, others in completions alone."""

ALIASES = {"max_tokens": ("n_predict",), "repeat_penalty": ("repetition_penalty",)}
"""Other servers' words for what we have; our own word counts for more."""

_CHAT = {
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "enable_thinking",
    "logprobs",
    "messages",
    "parse_special",
    "reasoning",
    "think",
    "thinking",
    "tool_choice",
    "tools",
    "top_logprobs",
}
"""Honoured in chats alone."""

_HONOURED = {
    "frequency_penalty",
    "grammar",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "n",
    "n_predict",
    "presence_penalty",
    "repeat_last_n",
    "repeat_penalty",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
}

CHAT_NAMES = _IGNORED | _HONOURED | _CHAT
COMPLETION_NAMES = _IGNORED | _HONOURED | {"echo", "logprobs", "prompt", "suffix"}

LIKENESS = 0.85
"""Of a name to one that is known, from 0 to 1, from which on it counts as a slip of the pen."""

NAMES_MAX = 256
"""Of parameters in a request: each that is not known is compared with all that are."""

UNKNOWN_TOLD_MAX = 16
"""Of names that are ignored: what a header has room for."""


def check_names(
    body: Mapping[str, Any], known: Collection[str], only_nothing: Mapping[str, tuple[Any, ...]]
) -> tuple[str, ...]:
    """Refuse what cannot be honoured, and slips of the pen; return names that nobody knows.

    Args:
        body: a request's parameters.
        known: names that mean something here, or change no answer.
        only_nothing: those that cannot be honoured, and the values by which they, as null, ask
            for nothing.

    Raises:
        Problem: one is refused, or there are too many.
    """
    if len(body) > NAMES_MAX:
        raise Problem(400, f"The request has more than {NAMES_MAX} parameters.", "invalid_value")
    ignored = []
    for name, value in body.items():
        if name in known:
            continue
        if name in only_nothing:
            if value is not None and not any(_equal(value, each) for each in only_nothing[name]):
                text = f"Unsupported parameter: '{name}' is not supported by this server."
                raise Problem(400, text, "unsupported_parameter", name)
        elif meant := difflib.get_close_matches(name[:64], known, 1, LIKENESS):
            text = f"Unknown parameter: '{name[:64]}'. Is '{meant[0]}' meant?"
            raise Problem(400, text, "unknown_parameter", name[:64])
        elif re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
            ignored.append(name)
    return tuple(ignored[:UNKNOWN_TOLD_MAX])


def _equal(value: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, where 0 is 0.0 but not false."""
    are_flags = isinstance(value, bool), isinstance(other, bool)
    return value == other and are_flags[0] == are_flags[1]
