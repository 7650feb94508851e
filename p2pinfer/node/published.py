"""Names of published models, and which of a repository's files they mean.

``hf:owner/repo[:QUANT]``, llama.cpp's ``owner/repo:QUANT``, Ollama's ``hf.co/owner/repo:QUANT`` and
LM Studio's ``owner/repo@quant`` name the same. QUANT is part of a file's name, in either case;
without one it is, as in llama.cpp, Q4_K_M, or else Q8_0, or else the first model.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from p2pinfer.core.errors import UserError

PREFERRED = ("Q4_K_M", "Q8_0")
"""Where no quantisation is named; llama.cpp's order."""

VARIANTS_NAMED_MAX = 24
"""In a sentence; popular repositories have up to 30."""

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
"""What the Hub allows in a name."""
_PREFIX = re.compile(r"(?:hf:(?://)?|(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/)", re.I)
_REPOSITORY = re.compile(rf"({_WORD}/{_WORD}?)(?:[:@]([A-Za-z0-9][A-Za-z0-9._-]{{0,63}}))?/?")

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
_QUANTISATION = re.compile(
    r"(?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP\d(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)", re.I
)
_COMPANIONS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""How llama.cpp tells files beside a model from models."""


@dataclass(frozen=True, slots=True)
class PublishedName:
    """A model in a repository of Hugging Face."""

    repository: str
    """``owner/repo``."""
    quantisation: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repository}" + (f":{self.quantisation}" if self.quantisation else "")

    def of(self, variant: "PublishedModel") -> "PublishedName":
        """Return the name of one variant."""
        return PublishedName(self.repository, variant.label)


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a repository."""

    path: str
    nbytes: int
    sha256: str | None = None
    """In hexadecimal."""


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One model of a repository, in one file or in shards."""

    label: str
    """Its quantisation, or the file's name where that says none."""
    files: tuple[PublishedFile, ...]
    """In order."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.nbytes for file in self.files)


def parse_published(text: str) -> PublishedName | None:
    """Return the published model that a text names; None if it must be a file's path.

    ``owner/repo`` alone may be a path: it needs a prefix or a quantisation.

    Raises:
        UserError: it begins as such a name does, and is none.
    """
    prefix = _PREFIX.match(text)
    found = _REPOSITORY.fullmatch(text, prefix.end() if prefix else 0)
    if found and not found[1].lower().endswith(".gguf") and (prefix or found[2]):
        return PublishedName(found[1].rstrip("."), found[2])
    if prefix:
        raise UserError(
            f"{text!r} names no model: write hf:owner/repo, or hf:owner/repo:QUANT such as"
            " hf:owner/repo:Q4_K_M"
        )
    return None


def is_repository(text: str) -> bool:
    """Whether a text may be ``owner/repo``."""
    found = _REPOSITORY.fullmatch(text)
    return found is not None and not found[1].lower().endswith(".gguf")


def variants(files: Iterable[PublishedFile]) -> list[PublishedModel]:
    """Return the models among a repository's files, without those that lack shards."""
    found: dict[tuple[str, int], list[PublishedFile]] = {}
    for file in sorted(files, key=lambda each: each.path):
        path = PurePosixPath(file.path)
        is_model = path.suffix.lower() == ".gguf" and not any(
            word in path.name.lower() for word in _COMPANIONS
        )
        if is_model:
            shard = _SHARD.search(path.stem)
            count = int(shard[2]) if shard else 1
            found.setdefault((_SHARD.sub("", str(path.with_suffix(""))), count), []).append(file)
    return [
        PublishedModel(label_of(stem), tuple(each))
        for (stem, count), each in found.items()
        if len(each) == count
    ]


def label_of(stem: str) -> str:
    """Return the quantisation that a file's name states last, or else the name."""
    name = PurePosixPath(stem).name
    stated = [
        each[0]
        for each in _QUANTISATION.finditer(name)
        if not name[: each.start()][-1:].isalnum() and not name[each.end() :][:1].isalnum()
    ]
    return stated[-1] if stated else name


def choose(name: PublishedName, among: Sequence[PublishedModel]) -> PublishedModel:
    """Return the variant that a name means; raises UserError, which lists those that there are."""
    wanted = PREFERRED if name.quantisation is None else (name.quantisation,)
    for each in wanted:
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(each)}(?:[.-]|$)", re.IGNORECASE)
        exact = [variant for variant in among if variant.label.lower() == each.lower()]
        loose = [variant for variant in among if pattern.search(variant.files[0].path)]
        if exact or loose:
            return (exact or loose)[0]
    if among and name.quantisation is None:
        return among[0]
    if not among:
        raise UserError(f"{name.repository} has no whole model in GGUF")
    raise UserError(
        f"{name.repository} has no {name.quantisation}; it has: {', '.join(labels(among))}"
    )


def labels(among: Sequence[PublishedModel]) -> list[str]:
    """Say what variants there are, with their sizes, the smallest first."""
    ordered = sorted(among, key=lambda each: each.nbytes)
    said = [f"{each.label} ({each.nbytes / 1e9:,.1f} GB)" for each in ordered]
    more = len(said) - VARIANTS_NAMED_MAX
    return said if more <= 0 else [*said[:VARIANTS_NAMED_MAX], f"{more} more"]
