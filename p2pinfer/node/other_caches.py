"""Models that other programs on this machine have downloaded, found where those keep them.

    Hugging Face    models--OWNER--REPO/snapshots/COMMIT/FILE, links to blobs/SHA256
    llama.cpp       the same; before that OWNER_REPO_FILE
    LM Studio       OWNER/REPO/FILE
    Ollama          manifests/REGISTRY/NAMESPACE/NAME/TAG, which name blobs/sha256-SHA256

What is not whole there, a link without its file or a model without all shards, is passed over.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.engine.gguf.shards import named_shards
from p2pinfer.node.published import (
    PublishedFile,
    PublishedModel,
    PublishedName,
    choose,
    label_of,
    variants,
)

FILES_MAX = 10_000
"""Looked at in each cache; nobody has as many models."""
OLLAMA_MANIFEST_BYTES_MAX = 1 << 20
"""They are about 1 kB."""

_LLAMA_CPP = "llama.cpp"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_HUGGING_FACE = ("hf.co", "huggingface.co")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole model in the cache of a program."""

    program: str
    title: str
    """What the program calls it."""
    path: Path
    """Its file, or its first shard."""
    nbytes: int
    name: PublishedName | None = None
    """If it is one of Hugging Face."""
    sha256: Mapping[Path, str] = field(default_factory=dict)
    """What its files' SHA-256 must be, where the cache says it."""

    def is_of(self, repository: str) -> bool:
        """Whether it comes from a repository of Hugging Face."""
        if self.name:
            return self.name.repository.lower() == repository.lower()
        prefix = f"{repository.replace('/', '_')}_"
        return self.program == _LLAMA_CPP and self.path.name.lower().startswith(prefix.lower())


def hub_cache() -> Path:
    """Return the cache of Hugging Face, as its library and llama.cpp find it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(variable):
            return _path(named)
    if home := os.environ.get("HF_HOME"):
        return _path(home) / "hub"
    return _cache_home() / "huggingface" / "hub"


def find_downloaded() -> list[Downloaded]:
    """Return every model in the caches of other programs, in order of programs and titles."""
    found: dict[Path, Downloaded] = {}
    for each in (*_hugging_face(), *_llama_cpp(), *_lm_studio(), *_ollama()):
        with suppress(OSError):
            found.setdefault(each.path.resolve(), each)
    return sorted(found.values(), key=lambda each: (each.program, each.title.lower(), each.path))


def look_up(name: PublishedName, held: Iterable[Downloaded]) -> Downloaded | None:
    """Return the model of those held that a name means; one without a quantisation means any."""
    among = {_variant(each): each for each in held if each.is_of(name.repository)}
    try:
        return among[choose(name, list(among))]
    except UserError:
        return None


def _variant(each: Downloaded) -> PublishedModel:
    label = each.name.quantisation if each.name else None
    file = PublishedFile(each.path.name, each.nbytes)
    return PublishedModel(label or label_of(each.path.stem), (file,))


def _hugging_face() -> Iterator[Downloaded]:
    """Yield models from the snapshots of each repository, the newest snapshot first."""
    roots = [hub_cache()]
    if named := os.environ.get("LLAMA_CACHE"):
        roots.append(_path(named))
    for root in dict.fromkeys(roots):
        for folder in sorted(root.glob("models--*--*")):
            repository = folder.name.removeprefix("models--").replace("--", "/", 1)
            for snapshot in sorted((folder / "snapshots").glob("*"), key=_changed, reverse=True):
                yield from _in_folder("Hugging Face", snapshot, repository)


def _llama_cpp() -> Iterator[Downloaded]:
    """Yield models named OWNER_REPO_FILE, of which only a name given can tell where REPO ends."""
    named = os.environ.get("LLAMA_CACHE")
    roots = [_path(named)] if named else []
    for root in dict.fromkeys([*roots, _cache_home() / "llama.cpp", _mac_caches() / "llama.cpp"]):
        for variant in variants(_files(root.glob("*.gguf"), root)):
            path = root / variant.files[0].path
            yield Downloaded(_LLAMA_CPP, path.name, path, variant.nbytes)


def _lm_studio() -> Iterator[Downloaded]:
    for root in (Path("~/.lmstudio/models"), Path("~/.cache/lm-studio/models")):
        for folder in sorted(root.expanduser().glob("*/*")):
            yield from _in_folder("LM Studio", folder, f"{folder.parent.name}/{folder.name}")


def _ollama() -> Iterator[Downloaded]:
    named = os.environ.get("OLLAMA_MODELS")
    usual = (Path("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))
    for root in [_path(named)] if named else [each.expanduser() for each in usual]:
        for count, manifest in enumerate(sorted((root / "manifests").glob("*/*/*/*"))):
            if count == FILES_MAX:
                return
            with suppress(OSError, ValueError, TypeError, KeyError):
                yield _ollama_model(root, manifest)


def _ollama_model(root: Path, manifest: Path) -> Downloaded:
    """Read a manifest; raises OSError, ValueError, TypeError or KeyError if it makes no sense."""
    with manifest.open("rb") as file:
        said = json.loads(file.read(OLLAMA_MANIFEST_BYTES_MAX))
    models = [layer for layer in said["layers"] if layer["mediaType"] == _OLLAMA_MODEL]
    (layer,) = models
    sha256 = layer["digest"].removeprefix("sha256:")
    if not _SHA256.fullmatch(sha256):
        raise ValueError(sha256)
    blob = root / "blobs" / f"sha256-{sha256}"
    registry, namespace, model, tag = manifest.relative_to(root / "manifests").parts
    name = None
    if registry in _OLLAMA_HUGGING_FACE:
        name = PublishedName(f"{namespace}/{model}", tag)
    where = "" if namespace == "library" else f"{namespace}/"
    where = f"{registry}/{where}" if name else where
    title = f"{where}{model}:{tag}"
    return Downloaded("Ollama", title, blob, blob.stat().st_size, name, {blob: sha256})


def _in_folder(program: str, folder: Path, repository: str) -> Iterator[Downloaded]:
    """Yield the models in a folder that is laid out as their repository."""
    for variant in variants(_files(folder.rglob("*.gguf"), folder)):
        path = folder / variant.files[0].path
        with suppress(BadModelFile):
            sha256 = {each: each.resolve().name for each in named_shards(path) if each.is_symlink()}
            yield Downloaded(
                program,
                f"{repository}/{variant.files[0].path}",
                path,
                variant.nbytes,
                PublishedName(repository, variant.label),
                {each: name for each, name in sha256.items() if _SHA256.fullmatch(name)},
            )


def _files(paths: Iterable[Path], root: Path) -> Iterator[PublishedFile]:
    """Yield those that are there; a link in a cache may lead nowhere."""
    with suppress(OSError):  # a folder that may not be read
        for count, path in enumerate(paths):
            if count == FILES_MAX:
                return
            with suppress(OSError):
                yield PublishedFile(path.relative_to(root).as_posix(), path.stat().st_size)


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _cache_home() -> Path:
    return _path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def _mac_caches() -> Path:
    return _path("~/Library/Caches")


def _path(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()
