"""What people read is plain English: a ratchet on words that betray a translated sentence."""

import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2pinfer", "peers", "scheduler", "transports", "sim", "tests")
TEXTS = ("*.md", "*.html", "*.js", "*.toml", "Makefile")

STIFF = re.compile(
    r"\b(whom|whoever|whosoever|so many|anew|likewise|by lot|whence|thereof|in spite of that)\b",
    re.IGNORECASE,
)

STIFF_MAX = 0
"""How many are left. It may only fall: say it another way."""


READ = {
    tokenize.STRING,
    tokenize.COMMENT,
    getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING),  # from Python 3.12 on
}
"""Tokens of Python that people read."""


def readable(path: Path) -> str:
    """Return what a person reads of a file: all of a text, comments and strings of Python."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(each.string for each in tokens if each.type in READ)


def files() -> Iterator[Path]:
    """Yield every file with words in it, this one excepted."""
    for path in _all_files():
        if not {"node_modules", "vendor"} & set(path.parts):  # written by others
            yield path


def _all_files() -> Iterator[Path]:
    for name in PACKAGES:
        yield from (p for p in (ROOT / name).rglob("*.py") if p != Path(__file__).resolve())
    for pattern in TEXTS:
        yield from ROOT.glob(pattern)
        for name in ("docs", *PACKAGES):
            yield from (ROOT / name).rglob(pattern)


def test_stiff_words_become_fewer() -> None:
    """Lower the number with the words; it never rises."""
    found = Counter(
        f"{path.relative_to(ROOT)}: {word.lower()}"
        for path in files()
        for word in STIFF.findall(readable(path))
    )
    assert found.total() == STIFF_MAX, dict(found)


def test_stiff_words_are_seen(tmp_path: Path) -> None:
    """In strings and comments, whatever their case, and not in names."""
    path = tmp_path / "some.py"
    path.write_text('"""Whom it asks."""\nwhom = f"so many {1}"  # anew\n')
    assert STIFF.findall(readable(path)) == ["Whom", "so many", "anew"]
