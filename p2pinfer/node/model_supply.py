"""Getting a model: from a file, from this machine's store, or from the swarm."""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.manifest import BadManifest, Manifest
from p2pinfer.core.model_names import readable_name
from p2pinfer.engine.gguf.model_header import default_model_path
from p2pinfer.engine.gguf.shards import named_shards
from p2pinfer.engine.store.adapters import add_adapter
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk, WrongSha256
from p2pinfer.engine.store.slice_files import Slices
from p2pinfer.engine.store.split import Progress, add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.node.hub import HubUnreachable, forget
from p2pinfer.node.other_caches import Downloaded, find_downloaded, look_up
from p2pinfer.node.published import PublishedName, is_repository, parse_published
from p2pinfer.places import cache_dir, data_dir
from peers.discovery.directory import Directory
from peers.parts.describe import Blame, Tell, fetch_manifest, log_blame
from peers.parts.fetch import fetch_parts
from peers.parts.link import Holder
from peers.parts.protocol import Moved, in_thread
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

_ID = re.compile(r"[0-9a-f]{64}")
_BEGINNING = re.compile(r"[0-9a-f]{6,63}")

T = TypeVar("T")

REPAIRS_MAX = 3
"""How often good parts may turn out damaged before the disk is no longer trusted."""

Download = Callable[[PublishedName, Progress], Mapping[Path, str]]
"""Downloads a published model, and returns its files with their SHA-256, which is not checked yet;
raises HubUnreachable or UserError."""

Choose = Callable[[], Awaitable[ModelId]]
"""Finds the default model's id; may add its file to the store first."""


def open_store(quota_bytes: int | None = None) -> Store:
    """Open the store in the data directory; raises UserError."""
    slices = Slices(cache_dir())
    return Store(data_dir() / "store", quota_bytes=quota_bytes, slices=slices)


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model's file, or its first shard, on this machine."""

    path: Path
    sha256: Mapping[Path, str] = field(default_factory=dict)
    """What its files' SHA-256 must be, as far as that is known."""
    in_place: bool = False
    """It lies in a cache, and is served from there."""
    is_new: bool = False
    """It was just downloaded."""


def name_model(
    name: str, store: Store, on_progress: Progress, download: Download | None = None
) -> ModelId:
    """Return the id of the model that ``--model`` names; a file is added to the store first.

    Args:
        name: a GGUF file, a published model, ``default``, an id, or the beginning of the id of a
            model that is here, or the name of one with an adapter.
        store: where the file's parts are kept.
        on_progress: called with the progress of downloading, hashing and storing.
        download: gets a published model that is not on this machine.

    Raises:
        BadModelFile, UnsupportedModel: the file cannot be used.
        UserError: no such model.
    """
    if _ID.fullmatch(name):
        return ModelId(name)
    if _BEGINNING.fullmatch(name) and not Path(name).exists():
        return find_held(store, name).id
    if child := find_child(store, name):
        return child.id
    located = locate(name, on_progress, download)
    if seen := seen_before(located.path, store):
        return seen
    return add_located(located, store, on_progress).id


def locate(name: str, on_progress: Progress, download: Download | None = None) -> LocatedModel:
    """Return the file that a name stands for; a published model is looked for in caches first.

    Raises:
        UserError: a published model is not here, and cannot be downloaded.
    """
    if name == "default":
        return LocatedModel(default_model_path())
    path = Path(name).expanduser()
    published = None if path.exists() else parse_published(name)
    if published is None:
        return LocatedModel(path)
    held = find_downloaded()
    if found := look_up(published, held):
        return LocatedModel(found.path, found.sha256, in_place=True)
    here = _named_here(published, held)
    if download is None:
        raise UserError(
            f"{published} is not on this machine{here}; to download it: p2pinfer model add"
            f" {published}"
        )
    try:
        files = download(published, on_progress)
    except HubUnreachable as error:
        raise UserError(f"{published} is not on this machine, and {error}{here}") from error
    return LocatedModel(next(iter(files)), files, in_place=True, is_new=True)


def _named_here(name: PublishedName, held: Iterable[Downloaded]) -> str:
    """Say what is here instead."""
    same = [str(each.name or each.path) for each in held if each.is_of(name.repository)]
    if same:
        return f"; of the same repository there is here: {', '.join(same)}"
    return "; p2pinfer model find lists what other programs downloaded" if held else ""


def add_located(
    located: LocatedModel, store: Store, on_progress: Progress, *, in_place: bool = False
) -> Manifest:
    """Split a model's file, keep its parts, and remember its id; raises as ``split.add_model``."""
    check = located.sha256
    in_place = in_place or located.in_place
    if not located.path.exists():
        _check_readable(located.path)
    try:
        found = add_model(store, located.path, on_progress, in_place=in_place, check=check)
    except WrongSha256 as error:
        if not located.is_new:
            raise
        forget([error.path])
        raise BadModelFile(
            f"{error.path.name} arrived damaged: it has another SHA-256 than its publisher states,"
            " and was removed; run the same again"
        ) from error
    _remember(located.path, found.id)
    return found


def check_named(name: str | None) -> None:
    """Raise BadModelFile early if ``--model`` names a file that cannot be read."""
    if name is None or name == "default" or _ID.fullmatch(name):
        return
    path = Path(name).expanduser()
    if not path.exists() and find_child(open_store(), name):
        return
    if path.exists() or not (_BEGINNING.fullmatch(name) or parse_published(name)):
        _check_readable(path)


def _check_readable(path: Path) -> None:
    """Raise BadModelFile if a file cannot be opened, and say what else a model can be named by."""
    try:
        path.open("rb").close()
    except OSError as error:
        advice = "name a GGUF file"
        if not path.exists() and is_repository(str(path)):
            advice += f", or hf:{path} for a model on Hugging Face"
        elif not path.exists():
            advice += "; what is here: p2pinfer model list, and p2pinfer model find"
        raise BadModelFile(f"cannot read {path}: {error.strerror}; {advice}") from error


def model_path(name: str) -> Path:
    """Return the GGUF file that a name stands for, if it is here; raises UserError."""
    return locate(name, lambda *_: None).path


def find_held(store: Store, beginning: str) -> Manifest:
    """Return the one model here whose id begins like this, the default, or a file that was added.

    Raises:
        UserError: there is none, or there are several.
    """
    if beginning == "default":
        model = seen_before(model_path(beginning), store)
        manifest = store.manifest(model) if model else None
        if manifest is None:
            raise UserError(
                "the default model is not here yet; to add it: p2pinfer model add default"
            )
        return manifest
    if child := find_child(store, beginning):
        return child
    if (path := Path(beginning).expanduser()).is_file():
        model = seen_before(path, store)
        if manifest := store.manifest(model) if model else None:
            return manifest
        raise UserError(f"{path} was not added yet; to add it: p2pinfer model add {path}")
    beginning = beginning.lower()
    found = [model for model in store.models() if beginning and model.id.startswith(beginning)]
    if not found:
        raise UserError(f"no model here has the id {beginning!r}; see: p2pinfer model list")
    if len(found) > 1:
        ids = ", ".join(model.id[:12] for model in found)
        raise UserError(f"the ids of {len(found)} models begin with {beginning!r}: {ids}")
    return found[0]


def find_child(store: Store, name: str) -> Manifest | None:
    """Return the model with an adapter that has this name here; None if that may be a file.

    Raises:
        UserError: several have it.
    """
    if Path(name).expanduser().exists():
        return None
    same = (name, readable_name(name))
    found = [each for each in store.models() if each.base and each.name in same]
    if len(found) > 1:
        ids = ", ".join(model.id[:12] for model in found)
        raise UserError(f"{len(found)} models have the name {name!r}, choose one by its id: {ids}")
    return found[0] if found else None


def add_to_base(
    located: LocatedModel, store: Store, base: ModelId, name: str | None = None
) -> Manifest:
    """Add an adapter's file to a model that is here; raises as ``add_adapter``."""
    manifest = store.manifest(base)
    if manifest is None:
        raise UserError(
            f"the model {base[:12]}… is not here: add it from its file first, with p2pinfer model"
            " add FILE"
        )
    return add_adapter(store, located.path, manifest, name)


def remove_model(store: Store, model: ModelId) -> int:
    """Remove a model, its slices, and what ``demo`` keeps of it; return the bytes freed.

    Parts that a running peer uses or another model shares stay.
    """
    freed = store.remove(model)
    for home in (data_dir() / "demo").glob("*/*"):
        if (home / "data" / "store").is_dir():
            slices = Slices(home / "cache")
            freed += Store(home / "data" / "store", slices=slices).remove(model)
    return freed


def is_whole_here(model: ModelId, store: Store) -> bool:
    """Whether all parts of a model are here."""
    manifest = store.manifest(model)
    return manifest is not None and _is_whole(manifest, store)


def open_whole(model: ModelId, store: Store) -> PartsModel:
    """Open a model whose parts are all here; raises UserError."""
    manifest = store.manifest(model)
    if manifest is None or not _is_whole(manifest, store):
        raise UserError(
            f"not all of model {model[:12]}… is here: name its GGUF file, or add it with"
            " p2pinfer model add FILE"
        )
    return open_parts(store, manifest, cache_dir())


async def pick_model(directory: Directory, default: Choose) -> ModelId:
    """Return the model that a swarm serves if it serves only one, else the default.

    Raises:
        UserError: the swarm serves other models than the default, and more than one.
    """
    served = directory.models()
    if len(served) == 1:
        return next(iter(served))
    model = await default()
    if served and model not in served:
        names = ", ".join(
            f"{readable_name(name)} (--model {model})" for model, name in sorted(served.items())
        )
        raise UserError(f"the swarm serves several models, choose one: {names}")
    return model


async def obtain(
    transport: Transport,
    directory: Directory,
    store: Store,
    model: ModelId,
    needed: Callable[[Manifest], Iterable[str]],
    make: Callable[[PartsModel], T],
    tell: Tell,
    chance: Random,
    blame: Blame = log_blame,
    had: Moved = lambda *_: None,
) -> tuple[PartsModel, T]:
    """Fetch the parts of a model that the store lacks, and make something from them.

    Args:
        transport: reaches their holders.
        directory: knows their holders.
        store: where the parts are kept.
        model: the model's id, the only root of trust.
        needed: returns the parts' names; may raise UserError.
        make: makes slices, for example; runs in a thread.
        tell: called with the progress of the transfer, and what it waits for.
        chance: picks where in the parts to start, so that peers soon have parts for each other.
        blame: called with the error of a peer that sent wrong data, which is not asked again.
        had: called with each peer that gave chunks, and how many bytes.

    Raises:
        BadManifest, BadModelFile, UnsupportedModel: the model itself is faulty.
        UserError: the disk is full or corrupts data, or ``needed`` or ``make`` raised it.
    """

    def holders() -> Iterable[Holder]:
        return directory.holding(model)

    manifest = await fetch_manifest(transport, holders, store, model, tell, blame=blame)
    names = tuple(needed(manifest))
    parts = [manifest.part(name) for name in names]
    await in_thread(partial(store.check_room, parts, cut=True))
    for repairs in range(REPAIRS_MAX + 1):
        try:
            await fetch_parts(
                transport,
                holders,
                store,
                manifest,
                names,
                tell,
                start=chance.random(),
                blame=blame,
                had=had,
            )
            opened = await in_thread(open_parts, store, manifest, cache_dir())
            return opened, await in_thread(make, opened)
        except (DamagedPart, MissingChunk) as error:
            # The stored data changed: damaged parts are set aside, and fetched again.
            _log.warning("%s; fetching it again", error)
            if repairs == REPAIRS_MAX:
                raise UserError(
                    f"{error}, after it was fetched {REPAIRS_MAX} times: the disk under"
                    f" {store.root} corrupts data, or another program writes there; set"
                    " P2PINFER_HOME to a directory on another disk"
                ) from error
    raise AssertionError("the last repair returns or raises")


def _is_whole(manifest: Manifest, store: Store) -> bool:
    return all(store.held(part) for part in manifest.parts)


def _remember(path: Path, model: ModelId) -> None:
    seen = _read_seen()
    seen[_seen_key(path)] = [*_stamp(path), model]
    with suppress(OSError):  # the file is then hashed again next time
        (cache_dir() / "files.json").write_text(json.dumps(seen))


def seen_before(path: Path, store: Store) -> ModelId | None:
    """Return a file's id without hashing it, if it is unchanged since its parts were stored."""
    match _read_seen().get(_seen_key(path)):
        case [size, changed_ns, str(model)]:
            with suppress(BadManifest, OSError):  # of another release: the file is split again
                if [size, changed_ns] != _stamp(path):
                    return None
                manifest = store.manifest(ModelId(model))
                return manifest.id if manifest and _is_whole(manifest, store) else None
    return None


def _seen_key(path: Path) -> str:
    """Return the same text for each of a model's shards."""
    return str(named_shards(path)[0].resolve())


def _stamp(path: Path) -> list[int]:
    """Return the bytes of a model's files, and the sum of their times; raises OSError."""
    found = [each.stat() for each in named_shards(path)]
    return [sum(each.st_size for each in found), sum(each.st_mtime_ns for each in found)]


def _read_seen() -> dict[str, list[object]]:
    try:
        seen = json.loads((cache_dir() / "files.json").read_text())
    except (OSError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}
