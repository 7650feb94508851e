"""A small model of random bytes, and peers that hold it in real stores, over a memory network."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

import trio
from blake3 import blake3

from p2pinfer.core.errors import PeerError
from p2pinfer.core.ids import ModelId, PartHash, PeerId
from p2pinfer.core.manifest import CHUNK_BYTES, Manifest, Part, TensorRow, part_names
from p2pinfer.engine.store.store import Store
from peers.parts.describe import fetch_manifest
from peers.parts.fetch import fetch_parts
from peers.parts.keep_server import KeepServer
from peers.parts.progress import Progress
from peers.parts.protocol import in_place
from peers.parts.server import PartsServer
from tests.support.swarm import peer
from transports.memory.network import MemoryNetwork, MemoryTransport

T = TypeVar("T")

ME = peer("fetcher")


def cut(data: bytes) -> list[bytes]:
    """Cut bytes into chunks."""
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


@cache
def make_model(layers: int = 3, layer_bytes: int = 3 * CHUNK_BYTES + 17, seed: int = 1) -> "Model":
    """Make a model whose parts are noise."""
    chance = random.Random(seed)
    data = {
        name: chance.randbytes(layer_bytes if name.startswith("layer") else 1000 + seed)
        for name in part_names(layers)
    }
    parts = [
        Part(name, len(each), tuple(blake3(chunk).digest() for chunk in cut(each)))
        for name, each in data.items()
    ]
    tensors = (TensorRow("t", 0, (1,)),)
    return Model(
        Manifest("noise", None, "llama", layers, 8, 8, 8, tensors, tuple(parts)),
        {part.hash: data[part.name] for part in parts},
    )


@dataclass(frozen=True)
class Model:
    """A manifest and the bytes of its parts."""

    manifest: Manifest
    data: dict[PartHash, bytes]

    @property
    def id(self) -> ModelId:
        """The model's id."""
        return self.manifest.id

    def chunk(self, part: Part, index: int) -> bytes:
        """Return a chunk's bytes."""
        return cut(self.data[part.hash])[index]

    def fill(self, store: Store, chunks: Callable[[Part, int], bool] = lambda _, __: True) -> Store:
        """Put the manifest and the chosen chunks into a store."""
        store.add_manifest(self.manifest.encode(), self.id)
        for part in self.manifest.parts:
            if self.manifest.is_long and any(chunks(part, i) for i in range(part.chunk_count)):
                store.add_list(part, b"".join(part.chunks))
            for index in range(len(part.chunks)):
                if chunks(part, index):
                    store.write_chunk(part, index, self.chunk(part, index))
            if len(store.chunks_held(part)) == len(part.chunks):
                store.finish(part)
        return store


class CountingStore(Store):
    """A store that remembers what was written to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[tuple[str, int]] = []

    def write_chunks(self, part: Part, chunks: Mapping[int, bytes]) -> set[int]:
        """Write, and remember."""
        wrong = super().write_chunks(part, chunks)
        self.written += [(part.name, index) for index in chunks if index not in wrong]
        return wrong


@dataclass
class Where:
    """A holder as a directory would name it."""

    peer: PeerId
    addresses: Sequence[str] = ()


@dataclass
class Swarm:
    """Holders, and a fetcher with an empty store."""

    root: Path
    model: Model
    network: MemoryNetwork
    nursery: trio.Nursery
    me: MemoryTransport
    store: CountingStore
    known: dict[PeerId, Where] = field(default_factory=dict)
    """Holders that the directory names."""
    servers: dict[PeerId, PartsServer] = field(default_factory=dict)
    leave: dict[PeerId, Callable[[], None]] = field(default_factory=dict)
    told: list[Progress] = field(default_factory=list)
    blamed: list[PeerError] = field(default_factory=list)
    had: Counter[PeerId] = field(default_factory=Counter)
    """Bytes of right chunks, by the holder that gave them."""
    sent: Counter[PeerId] = field(default_factory=Counter)
    """Bytes of answers, as each holder counted them."""

    async def add(
        self, name: str, chunks: Callable[[Part, int], bool] = lambda _, __: True
    ) -> PeerId:
        """Add a holder of some of the model's chunks."""
        store = self.model.fill(Store(self.root / name), chunks)
        return await self.serve(name, store)

    async def serve(self, name: str, store: Store) -> PeerId:
        """Add a peer that serves a store."""

        def listen(transport: MemoryTransport) -> None:
            def count(_: PeerId, count: int) -> None:
                self.sent[transport.peer_id] += count

            server = PartsServer(transport, store, in_place, count)
            self.servers[transport.peer_id] = server
            server.listen()
            KeepServer(transport, store, in_place).listen()

        return await self.join(name, listen)

    async def join(self, name: str, listen: Callable[[MemoryTransport], None]) -> PeerId:
        """Add any peer to the network and to the directory."""
        who: PeerId = await self.nursery.start(self._live, peer(name), listen)
        self.known[who] = Where(who)
        return who

    async def _live(
        self,
        name: PeerId,
        listen: Callable[[MemoryTransport], None],
        *,
        task_status: trio.TaskStatus[PeerId],
    ) -> None:
        with trio.CancelScope() as scope:
            async with self.network.join(name) as transport:
                listen(transport)
                self.leave[name] = scope.cancel
                task_status.started(name)
                await trio.sleep_forever()

    def holders(self) -> Iterable[Where]:
        """Return the holders that the directory knows."""
        return list(self.known.values())

    async def fetch(self, names: Iterable[str] | None = None) -> None:
        """Fetch the manifest and parts, all of them unless named."""
        manifest = await fetch_manifest(
            self.me,
            self.holders,
            self.store,
            self.model.id,
            self.told.append,
            blame=self.blamed.append,
            run=in_place,
        )
        await fetch_parts(
            self.me,
            self.holders,
            self.store,
            manifest,
            [part.name for part in manifest.parts] if names is None else names,
            self.told.append,
            blame=self.blamed.append,
            run=in_place,
            had=lambda who, count: self.had.update({who: count}),
        )

    def is_whole(self) -> bool:
        """Whether the fetcher's store holds exactly the model's bytes."""
        return all(
            self.store.path(part).read_bytes() == self.model.data[part.hash]
            for part in self.model.manifest.parts
        )


@asynccontextmanager
async def swarm(root: Path, model: Model | None = None) -> AsyncIterator[Swarm]:
    """Run a fetcher in a network without holders."""
    network = MemoryNetwork(lambda _, __: 0.001)
    async with network.join(ME) as me, trio.open_nursery() as nursery:
        store = CountingStore(root / "fetcher")
        yield Swarm(root, model or make_model(), network, nursery, me, store)
        nursery.cancel_scope.cancel()
