"""Names of models for people."""

import re

_KNOWN = {"Smollm2 135M 8k Lc100K Mix1 Ep2": "SmolLM2-135M-Instruct"}
"""Common names of models whose files carry the name of a training run."""

_COMMIT = re.compile(r"[0-9a-f]{32,64}")
"""A file converted from a download may be named after its folder there, a commit."""


def readable_name(name: str) -> str:
    """Return a name that people know, or else the file's own without what a converter left in it.

    What identifies a model, and what peers tell each other, keeps the name as it is written.
    """
    plain = re.sub(r"[\s_]+", " ", name).strip(" .")
    plain = re.sub(r"(?i)[ .-]gguf$", "", plain)
    if not plain or _COMMIT.fullmatch(plain):
        return "unnamed model"
    return _KNOWN.get(plain, plain)
