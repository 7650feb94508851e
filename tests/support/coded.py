"""A model's shares, computed plainly, and stores that hold some of them."""

from functools import cache
from pathlib import Path

from blake3 import blake3

from p2pinfer.core.erasure import encode
from p2pinfer.core.ids import ChunkId, PartHash
from p2pinfer.core.manifest import CHUNK_BYTES, Part
from p2pinfer.core.stripes import Layout, StoragePlan, make_plan, parity_part
from p2pinfer.engine.store.store import Store
from tests.support.parts_swarm import Model, make_model


class Coded:
    """A model with its storage plan, and the bytes of all its shares."""

    def __init__(self, model: Model, k: int, m: int, spoil: bool = False) -> None:
        self.model, self.layout = model, Layout(model.manifest, k, m)
        self.parts = {part.hash: part for part in model.manifest.parts}
        self.parity: list[list[list[bytes]]] = []
        """By band, row and stripe."""
        bands: list[list[Part]] = []
        for band in self.layout.each():
            stripes = []
            for stripe in range(band.stripes):
                at = band.at(stripe)
                data = [self.chunk(at[row]) if row in at else b"" for row in range(k)]
                parity = encode(data, m)
                stripes.append([p[::-1] for p in parity] if spoil else parity)
            rows = [[each[row] for each in stripes] for row in range(m)]
            self.parity.append(rows)
            hashes = [[blake3(chunk).digest() for chunk in row] for row in rows]
            bands.append([parity_part(band, row, each) for row, each in enumerate(hashes)])
        self.listed = {part.hash: part for band in bands for part in band}
        self.plan: StoragePlan = make_plan(model.manifest, k, m, bands)

    def chunk(self, chunk: ChunkId) -> bytes:
        """Return a data chunk's bytes."""
        return self.model.chunk(self.parts[chunk.part], chunk.number)

    def fill(self, root: Path, rows: set[int]) -> Store:
        """Make a store that holds these rows of every band, and the plan."""
        store = Store(root)
        store.add_manifest(self.model.manifest.encode(), self.model.id)
        store.add_plan(self.plan)
        for name, part in self.listed.items():
            store.add_list(self.listed[name], b"".join(part.chunks))
        for band in self.layout.each():
            for row in rows:
                if row < self.layout.k:
                    for chunk in band.data[row]:
                        part = self.parts[chunk.part]
                        store.write_chunk(part, chunk.number, self.chunk(chunk))
                else:
                    at = row - self.layout.k
                    part = self.listed[self.plan.parity[band.number][at].hash]
                    for index, data in enumerate(self.parity[band.number][at]):
                        store.write_chunk(part, index, data)
                    store.finish(part)
        return store


@cache
def coded_model(k: int = 8, m: int = 8, *, layers: int = 9, spoil: bool = False) -> Coded:
    """Return a model of three chunks a layer and some, coded; a spoilt one has other parity."""
    model = make_model(layers=layers, layer_bytes=2 * CHUNK_BYTES + 4000)
    return Coded(model, k, m, spoil)


def whole_parts(coded: Coded, store: Store) -> set[PartHash]:
    """Return the parts of the model that a store holds whole."""
    return {part.hash for part in coded.model.manifest.parts if store.held(part)}
