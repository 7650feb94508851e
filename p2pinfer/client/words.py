"""What a person reads in a chat, in their language: English stands in the code, others in a table.

The table is one for the terminal and the page: ``es.json``, English to Spanish, where {0}, {1} …
stand for what changes. What it lacks stays English.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

TRANSLATED = ("es",)
"""Languages that have a table."""

_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
"""In the order in which POSIX lets them count."""

FIXED_CHARS_MIN = 8
"""Of a sentence by which a whole one is recognised: "{0} of {1}" would be found in any."""

_PLACE = re.compile(r"\\{(\d)\\}")
"""Where a value stands, in an escaped text."""


def language_of(environment: Mapping[str, str]) -> str:
    """Return a person's language by their environment; ``en`` where ours are not theirs."""
    locale = next(filter(None, map(environment.get, _VARIABLES)), "")
    return next((each for each in TRANSLATED if re.match(rf"{each}([_.@]|$)", locale)), "en")


def table_path(language: str) -> Traversable:
    """Return the file of a language's table."""
    return files("p2pinfer.client").joinpath(f"{language}.json")


class Words:
    """Texts in one language."""

    def __init__(self, language: str) -> None:
        self._table: dict[str, str] = {}
        if language in TRANSLATED:
            self._table = json.loads(table_path(language).read_text("utf-8"))
        by_length = sorted(self._table, key=len, reverse=True)
        self._sentences = [
            (re.compile(_PLACE.sub(r"(?P<_\1>.+?)", re.escape(text))), text)
            for text in by_length
            if "{0}" in text and len(re.sub(r"{\d}", "", text)) >= FIXED_CHARS_MIN
        ]

    def __call__(self, text: str, *values: object) -> str:
        """Return a text with its values filled in."""
        return self._table.get(text, text).format(*values) if values else self.whole(text)

    def whole(self, text: str) -> str:
        """Return a sentence whose values are already in it."""
        if text in self._table:
            return self._table[text]
        if "; " in text:
            return "; ".join(map(self.whole, text.split("; ")))
        for pattern, sentence in self._sentences:
            if found := pattern.fullmatch(text):
                values = [self.whole(found[f"_{at}"]) for at in range(len(found.groups()))]
                return self._table[sentence].format(*values)
        return text


@cache
def words_of(language: str) -> Words:
    """Return the texts of a language; they are read once."""
    return Words(language)
