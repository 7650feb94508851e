"""The parts that this machine holds, shared by all its processes.

    manifests/ID        a model's manifest
    parts/HASH.gguf     a whole part: every chunk of it was hashed before it got this name
    hashes/HASH         the hashes of a part's chunks, where no manifest holds them
    plans/ID            a model's storage plan, which names its parity parts
    linked/HASH         a whole part's places in the model's own file, which is served where it is
    partial/HASH        an incomplete part, or one found damaged, at its full length
    bounds/ID           what ``calibration`` measured of a model
    proof-keys/ID       what this machine keeps of a model's layers to check openings
    lock                held while something here is added, begun, named or removed; a byte longer
                        each time a file is removed or set aside

Which chunks of a partial part are there is found by hashing them. Nothing is written down that
could contradict the bytes, so a process may be killed, and a machine lose power, at any moment.
A process remembers what it found or wrote as long as the file is the same one and ``lock`` has not
grown. So each chunk is hashed once on its way in: a part is named by its chunks' hashes.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import ModelId, PartHash
from p2pinfer.core.manifest import (
    CHUNK_BYTES,
    BadManifest,
    Manifest,
    Part,
    WrongManifest,
    parse_manifest,
)
from p2pinfer.core.stripes import StoragePlan
from p2pinfer.engine.gguf.writer import Extent
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk, WrongChunk
from p2pinfer.engine.store.disk import (
    chunk_at,
    good_chunks,
    is_named,
    keep_only,
    linked_chunk,
    sync_folder,
    write_at,
)
from p2pinfer.engine.store.lists import Lists
from p2pinfer.engine.store.pieces import Links, Pieces
from p2pinfer.engine.store.plans import Plans
from p2pinfer.engine.store.room import StoreRoom
from p2pinfer.engine.store.slice_files import Slices

_HASH = re.compile(r"[0-9a-f]{64}")

_Stamp = tuple[int, int]
"""A partial file's inode, and the length of ``lock``: an inode's number may be reused."""

_GONE = b"."
"""Added to ``lock`` before a file is removed or set aside."""


class Store:
    """Parts and manifests under ``root``; its methods may be called from any thread.

    They wait for the disk. Its failures are raised as UserError; the store stays consistent.
    """

    def __init__(
        self, root: Path, *, quota_bytes: int | None = None, slices: Slices | None = None
    ) -> None:
        """Open the store, creating it if there is none.

        Args:
            root: its directory.
            quota_bytes: the most that parts and slices may take.
            slices: what is cut from the parts and kept elsewhere on the same disk.
        """
        self.root = root
        self._slices = slices
        self._room = StoreRoom(quota_bytes, slices, self.used_bytes)
        self._manifests, self._parts, self._partial, linked, hashes, plans = folders = [
            root / name for name in ("manifests", "parts", "partial", "linked", "hashes", "plans")
        ]
        self._lists, self._links, self._plans = Lists(hashes), Links(linked), Plans(plans)
        self._lock = root / "lock"
        self._found: dict[PartHash, tuple[_Stamp, set[int]]] = {}
        """The chunks known to be in a partial file, as long as it is the same file."""
        self._finding = threading.Lock()
        with self._explained():
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            self._lock.touch()

    # Manifests

    def manifest(self, model: ModelId) -> Manifest | None:
        """Return a model's manifest if it is here; raises BadManifest if its format is unknown."""
        if not _HASH.fullmatch(model):
            return None
        path = self._manifests / model
        with self._explained():
            try:
                return parse_manifest(path.read_bytes(), model)
            except FileNotFoundError:
                return None
            except WrongManifest:  # damaged on disk; it can be fetched or added again
                path.unlink(missing_ok=True)
                return None

    def add_manifest(self, data: bytes, model: ModelId) -> Manifest:
        """Keep a model's manifest.

        Raises:
            BadManifest: the bytes are not this model's manifest.
            UserError: they do not fit.
        """
        manifest = parse_manifest(data, model)
        with self._locked():
            if not (self._manifests / model).exists():
                self._room.check_quota(len(data))
                temporary = self._manifests / ".new"  # one at a time: we hold the lock
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._manifests / model)
                sync_folder(self._manifests)
        return manifest

    def listed(self, part: Part) -> Part | None:
        """Return a part with its chunks' hashes; None if they are not in its manifest, nor here."""
        with self._explained():
            return self._lists.of(part)

    def add_list(self, part: Part, joined: bytes) -> Part:
        """Keep the hashes of a part's chunks, and return the part with them.

        Raises:
            WrongList: they are not this part's.
            UserError: they do not fit.
        """
        found = part.listed(joined)
        with self._locked():
            self._room.check_quota(len(joined))
            self._lists.keep(found)
        return found

    def plan(self, manifest: Manifest) -> StoragePlan | None:
        """Return a model's storage plan if it is here."""
        with self._explained():
            return self._plans.of(manifest)

    def add_plan(self, plan: StoragePlan) -> None:
        """Keep a model's storage plan, in place of another one; raises UserError."""
        with self._locked():
            self._plans.keep(plan)

    def models(self) -> list[Manifest]:
        """Return every manifest that is here and whole, in the order of their ids."""
        found = []
        for path in sorted(self._manifests.iterdir()):
            with suppress(BadManifest):
                if manifest := self.manifest(ModelId(path.name)):
                    found.append(manifest)
        return found

    def remove(self, model: ModelId) -> int:
        """Remove a model and parts of no other, except running slices; return the bytes freed."""
        freed = self._slices.remove(model) if self._slices else 0
        with self._locked() as lock:
            os.write(lock, _GONE)
            before = self.used_bytes()
            (self._manifests / model).unlink(missing_ok=True)
            (self.root / "bounds" / model).unlink(missing_ok=True)
            self._plans.forget(model)
            shutil.rmtree(self.root / "proof-keys" / model, ignore_errors=True)
            left = self.models()
            kept = {part.hash for manifest in left for part in manifest.parts}
            kept = kept.union(*map(self._plans.parts, left))
            self._lists.forget_all_but(kept)
            for path in (*self._parts.iterdir(), *self._partial.iterdir(), *self._links.files()):
                if path.name.removesuffix(".gguf") not in kept:
                    path.unlink(missing_ok=True)
            return freed + before - self.used_bytes()

    # Parts

    def path(self, part: Part) -> Path:
        """Return where the part is, or would be, when it is whole."""
        return self._parts / f"{part.hash}.gguf"

    def held(self, part: Part) -> bool:
        """Return whether the whole part is here; it was verified when it was written.

        One that is served from the model's own file is here as long as the file seems unchanged.
        """
        with suppress(FileNotFoundError):
            if self.path(part).stat().st_size == part.size:
                return True
        linked = self._links.of(part)
        return linked is not None and linked.is_same()

    def placed(self, part: Part) -> bool:
        """Return whether a part is here, or was before it or the file that it lies in changed."""
        return self.path(part).exists() or self._links.of(part) is not None

    def link(self, part: Part, pieces: Pieces) -> None:
        """Serve a part from where it lies, whose chunks were just hashed there; raises UserError.

        A part that is whole in the store, or that another file holds, stays as it is.
        """
        if self.held(part):
            return
        assert pieces.size == part.size, (part, pieces.size)
        with self._locked():
            self._links.keep(part, pieces)

    def pieces(self, part: Part) -> Pieces:
        """Return where the bytes of a whole part lie."""
        whole = Pieces([Extent(self.path(part), 0, part.size)])
        return whole if self.path(part).exists() else self._links.of(part) or whole

    def sources(self, parts: Iterable[Part]) -> list[Path]:
        """Return the files outside of the store that some of these parts are served from."""
        linked = filter(None, map(self._links.of, parts))
        return sorted({source.path for each in linked for source in each.sources})

    def begun(self, part: Part) -> bool:
        """Return whether a partial part is here: an incomplete one, or one that was set aside."""
        return self._partial_path(part).exists()

    def chunks_held(self, part: Part) -> set[int]:
        """Return the chunks that are here, in the whole part or in a partial one.

        The first call for a partial part hashes it.
        """
        if self.held(part):
            return set(range(part.chunk_count))
        with self._explained(), self._finding:
            listed = self._lists.of(part)
            if listed is None:
                return set()
            part = listed
            try:
                with self._partial_path(part).open("rb") as file:
                    return set(self._chunks_in(file.fileno(), part))
            except FileNotFoundError:
                return set()

    def read_chunk(self, part: Part, index: int) -> bytes:
        """Return a chunk after checking its hash.

        Raises:
            MissingChunk: it is not here.
            DamagedPart: the disk gives other bytes; the part is set aside.
        """
        with self._explained():
            part = self._with_hashes(part)
            for path in (self.path(part), self._partial_path(part)):
                try:
                    with path.open("rb", buffering=0) as file:
                        data = chunk_at(file.fileno(), part, index)
                except FileNotFoundError:
                    continue
                if data is not None:
                    return data
                if path == self.path(part):
                    self._set_aside(part)
                    raise DamagedPart(part, [index])
                self._found.pop(part.hash, None)
            if linked := self._links.of(part):
                data = linked_chunk(linked, part, index)
                if data is not None:
                    return data
                self._set_aside(part)
                raise DamagedPart(part, [index])
        raise MissingChunk(f"chunk {index} of {part.name} ({part.hash[:12]}…) is not here")

    def verify(self, part: Part) -> None:
        """Hash a whole part again; raises DamagedPart, having set it aside, or MissingChunk."""
        with self._explained():
            found = self._lists.of(part)
            try:
                if found is None:
                    raise FileNotFoundError
                with self.path(part).open("rb") as file:
                    good = good_chunks(file.fileno(), found)
            except FileNotFoundError:
                linked = self._links.of(part)
                if found is None or linked is None:
                    raise MissingChunk(f"{part.name} ({part.hash[:12]}…) is not here") from None
                chunks = range(part.chunk_count)
                good = {i for i in chunks if linked_chunk(linked, found, i) is not None}
        if len(good) < part.chunk_count:
            self._set_aside(part)
            raise DamagedPart(part, sorted(set(range(part.chunk_count)) - good))

    def check_room(self, parts: Iterable[Part], *, cut: bool = False) -> None:
        """Raise UserError if what is missing of these parts exceeds the quota or the disk.

        So may a slice that is then to be ``cut`` from them, which has the same bytes again.
        """
        missing = {part.hash: part for part in parts if not self.held(part)}
        begun = {name: path for name in missing if (path := self._partial / name).exists()}
        new_bytes = sum(part.size for name, part in missing.items() if name not in begun)
        all_bytes = sum(part.size for part in missing.values())
        with self._explained():
            blocks = sum(path.stat().st_blocks for path in begun.values())
            self._room.check(self.root, new_bytes, all_bytes - 512 * blocks, all_bytes * cut)

    def check_room_for_slice(self, size: int) -> None:
        """Raise UserError if a slice of ``size`` bytes exceeds the quota or the disk."""
        with self._explained():
            self._room.check(self.root, 0, 0, size)

    def write_chunk(self, part: Part, index: int, data: bytes) -> None:
        """Put a chunk in its place in the partial part; nothing happens if the part is whole.

        Raises:
            WrongChunk: the bytes are not this chunk's.
            UserError: the part does not fit.
        """
        if self.write_chunks(part, {index: data}):
            raise WrongChunk(f"these bytes are not chunk {index} of {part.name}")

    def write_chunks(self, part: Part, chunks: Mapping[int, bytes]) -> set[int]:
        """Write those chunks that are correct; return the numbers of the others.

        Raises:
            UserError: the part does not fit.
        """
        part = self._with_hashes(part)
        right = {
            index: data
            for index, data in chunks.items()
            if len(data) == part.chunk_size(index) and blake3(data).digest() == part.chunks[index]
        }
        if right:
            with self._opened_partial(part, fcntl.LOCK_SH) as file:
                if file is not None:
                    with self._finding:
                        found = self._chunks_in(file, part)
                    for index, data in right.items():
                        write_at(file, data, index * CHUNK_BYTES)
                        found.add(index)
        return chunks.keys() - right.keys()

    def finish(self, part: Part) -> None:
        """Give a part its name once all its chunks are here and on disk.

        Raises:
            MissingChunk: a chunk is missing after all.
            UserError: the disk did not take it; then it must be fetched again.
        """
        if self.held(part):
            return
        part = self._with_hashes(part)
        with self._opened_partial(part, fcntl.LOCK_EX) as file:
            if file is None:
                return
            with self._finding:
                missing = set(range(part.chunk_count)) - self._chunks_in(file, part)
            if missing:
                raise MissingChunk(f"{part.name} lacks chunk {min(missing)}")
            os.ftruncate(file, part.size)
            try:
                os.fsync(file)
            except OSError:
                # What the system could not write it may drop, or return as if it were on disk.
                with self._locked() as lock:
                    os.write(lock, _GONE)
                    self._partial_path(part).unlink(missing_ok=True)
                raise
            with self._locked():
                if not is_named(self._partial_path(part), file):
                    raise MissingChunk(f"{part.name} has been removed meanwhile")
                self._partial_path(part).replace(self.path(part))
            self._found.pop(part.hash, None)
            sync_folder(self._parts)
            sync_folder(self._partial)

    def drop(self, part: Part, chunks: Collection[int]) -> None:
        """Free some chunks of a partial part; a whole one stays as it is, unless all go."""
        part = self._with_hashes(part)
        if self.held(part) and len(set(chunks)) == part.chunk_count:
            with self._locked() as lock:
                os.write(lock, _GONE)
                self.path(part).unlink(missing_ok=True)
        elif not self.held(part) and self.begun(part):
            with self._opened_partial(part, fcntl.LOCK_EX) as file:
                if file is not None:
                    with self._finding, self._locked() as lock:
                        left = self._chunks_in(file, part) - set(chunks)
                        os.write(lock, _GONE)
                        keep_only(file, part, left, self._partial_path(part))

    def used_bytes(self) -> int:
        """Return the bytes of everything here: partial parts at their full length, and slices."""
        total = self._slices.used_bytes() if self._slices else 0
        own = (self._manifests, self._parts, self._partial)
        folders = (*own, self._links.folder, self._lists.folder)
        for folder in folders:
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # another process has removed it
                    total += path.stat().st_size
        return total

    def _partial_path(self, part: Part) -> Path:
        return self._partial / part.hash

    def _chunks_in(self, file: int, part: Part) -> set[int]:
        """Return the chunks in a partial file, which is hashed when it is first seen."""
        stamp = self._stamp(file)
        known, found = self._found.get(part.hash, (None, set[int]()))
        if known != stamp:
            found = good_chunks(file, part)
            self._found[part.hash] = (stamp, found)
        return found

    def _stamp(self, file: int) -> _Stamp:
        return os.fstat(file).st_ino, self._lock.stat().st_size

    def _with_hashes(self, part: Part) -> Part:
        found = self.listed(part)
        if found is None:
            raise MissingChunk(f"the hashes of {part.name} ({part.hash[:12]}…) are not here")
        return found

    def _set_aside(self, part: Part) -> None:
        """Make a damaged part a partial one: its good chunks count, the others are missing.

        One in the model's own file is no longer served from there: the file is another now.
        """
        with self._locked() as lock, suppress(FileNotFoundError):
            os.write(lock, _GONE)
            self._links.drop(part)
            self.path(part).replace(self._partial_path(part))

    @contextmanager
    def _opened_partial(self, part: Part, how: int) -> Iterator[int | None]:
        """Open the partial file, locked; None if the part is whole.

        A process that finishes a part holds the lock alone, and the file then has another name: so
        after waiting for the lock, check again.
        """
        with self._explained():
            while not self.held(part):
                self._begin(part)
                try:
                    file = os.open(self._partial_path(part), os.O_RDWR)
                except FileNotFoundError:
                    continue
                try:
                    fcntl.flock(file, how)
                    if is_named(self._partial_path(part), file):
                        yield file
                        return
                finally:
                    os.close(file)
            yield None

    def _begin(self, part: Part) -> None:
        path = self._partial_path(part)
        if path.exists():
            return
        with self._locked():
            if path.exists() or self.held(part):
                return
            self._room.check_quota(part.size)
            with self._finding, path.open("xb") as file:
                file.truncate(part.size)
                # Known to be empty, it is spared the first hashing, which would read it all.
                self._found[part.hash] = (self._stamp(file.fileno()), set())

    @contextmanager
    def _locked(self) -> Iterator[int]:
        with self._explained():
            file = os.open(self._lock, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
            finally:
                os.close(file)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the store in {self.root} cannot be used: {error.strerror}; what it held is intact"
            ) from error
