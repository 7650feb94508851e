"""The proof keys of a store's models: what a verifier keeps of layers, secret to this machine.

    proof-keys/ID/seed     32 secret bytes, and when they were drawn
    proof-keys/ID/shape    how the layers compute
    proof-keys/ID/N        layer N, folded with the seed

A key is made layer by layer, and each file is written at once or not at all, so making it may end
at any moment and goes on where it was. Who may read it can make a false row that passes: so only
its owner may, and it is drawn again every week, and after every rejection, which tells a cheat a
little about it.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
from attrs import astuple, fields, frozen
from numpy.typing import NDArray

from p2pinfer.core.errors import BadModelFile, UnsupportedModel, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.core.layer_key import LayerKey, LayerShape
from p2pinfer.core.manifest import METADATA, Manifest, layer_part
from p2pinfer.core.projection import SEED_BYTES, FoldedMatrix
from p2pinfer.engine.gguf.layer_keys import Read, layer_key, layer_shape
from p2pinfer.engine.gguf.reader import GgufHeader, Tensor
from p2pinfer.engine.store.assemble import whole_header
from p2pinfer.engine.store.slice_adapters import part_header
from p2pinfer.engine.store.store import Store

RENEWED_S: Final = 7 * 86_400.0
"""A week of daily rejections would tell less than a bit of each secret number."""

_FOLDER = "proof-keys"
_FORMAT = "p2pinfer proof key 1"

Draw = Callable[[int], bytes]


@frozen(eq=False)
class ProofKey:
    """A verifier's key of a model: of all its layers, or of those that are made."""

    made_s: float
    """Unix time when its seed was drawn."""
    shape: LayerShape
    layers: Mapping[int, LayerKey]

    @property
    def nbytes(self) -> int:
        """How much is kept."""
        return sum(each.nbytes for each in self.layers.values())


class ProofKeys:
    """The proof keys of one store; its methods may be called from any thread, and wait for disk.

    Args:
        store: whose models they are of.
        draw: returns that many secret random bytes.
    """

    def __init__(self, store: Store, draw: Draw) -> None:
        self._root, self._draw = store.root / _FOLDER, draw

    def load(self, model: ModelId) -> ProofKey | None:
        """Return a model's key as far as it is made; None if it is not begun, or damaged."""
        folder = self._root / model
        seed, made_s = self._seed(model)
        if seed is None:
            return None
        try:
            shape = _shape(_read(folder / "shape"))
            names = [path.name for path in folder.iterdir() if path.name.isdecimal()]
            layers = {int(name): _layer(seed, _read(folder / name)) for name in names}
        except (OSError, ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException):
            return None
        return ProofKey(made_s, shape, layers)

    def folded(self, model: ModelId) -> frozenset[int]:
        """Return the layers that are folded."""
        try:
            names = [path.name for path in (self._root / model).iterdir()]
        except OSError:
            return frozenset()
        return frozenset(int(name) for name in names if name.isdecimal())

    def begin(self, manifest: Manifest, header: GgufHeader, read: Read, now_s: float) -> list[int]:
        """Draw a seed where there is none, or an old one; return the layers that are not folded.

        Args:
            manifest: the model's.
            header: the whole model's.
            read: returns the bytes of its metadata part's tensors.
            now_s: Unix time.

        Raises:
            UnsupportedModel: the model's layers cannot be proven.
            UserError: the key cannot be written.
        """
        shape = layer_shape(header, read)
        seed, made_s = self._seed(manifest.id)
        if seed is None or not 0 <= now_s - made_s < RENEWED_S:
            self.wipe(manifest.id)
            self._write(manifest.id, "shape", _packed_shape(shape))
            self._write(manifest.id, "seed", [self._draw(SEED_BYTES), now_s])
        folder = self._root / manifest.id
        return [layer for layer in range(manifest.layers) if not (folder / str(layer)).exists()]

    def fold(self, model: ModelId, layer: int, tensors: Mapping[str, Tensor], read: Read) -> None:
        """Fold a layer, and keep what is needed of it.

        Raises:
            UnsupportedModel: the layer cannot be proven.
            UserError: the key cannot be written, or has been wiped.
        """
        seed, _ = self._seed(model)
        if seed is None:
            raise UserError("the proof key was removed while it was made: make it again")
        self._write(model, str(layer), _packed_layer(layer_key(seed, layer, tensors, read)))

    def expire(self, model: ModelId) -> None:
        """Forget a key's secret and layers, but not that a key is wanted."""
        with suppress(FileNotFoundError):
            for path in (self._root / model).iterdir():
                path.unlink(missing_ok=True)

    def is_due(self, model: ModelId, now_s: float) -> bool:
        """Whether a key is wanted, and expired or a week old; false of one that is being made."""
        if not (self._root / model).is_dir():
            return False
        seed, made_s = self._seed(model)
        return seed is None or not 0 <= now_s - made_s < RENEWED_S

    def wipe(self, model: ModelId) -> None:
        """Remove a model's key."""
        wipe_proof_key(self._root.parent, model)

    def _seed(self, model: ModelId) -> tuple[bytes | None, float]:
        try:
            seed, made_s = _read(self._root / model / "seed")
        except (OSError, ValueError, TypeError, msgpack.exceptions.UnpackException):
            return None, 0.0
        return (seed, made_s) if type(seed) is bytes and len(seed) == SEED_BYTES else (None, 0.0)

    def _write(self, model: ModelId, name: str, values: list[Any]) -> None:
        folder = self._root / model
        draft = folder / f".{name}.{os.getpid()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgpack.packb([_FORMAT, *values]))
            draft.replace(folder / name)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; make room there") from error


def wipe_proof_key(root: Path, model: ModelId) -> None:
    """Remove a model's key from the store at ``root``."""
    with suppress(FileNotFoundError):
        shutil.rmtree(root / _FOLDER / model)


def part_tensors(store: Store, manifest: Manifest, name: str) -> tuple[Mapping[str, Tensor], Read]:
    """Return the tensors of a part that is here, hashed once more, and what reads them.

    Raises:
        MissingChunk, DamagedPart: it is not here, or no longer what it was.
        BadModelFile: it makes no sense.
    """
    part = manifest.part(name)
    store.verify(part)
    header, pieces = part_header(store, part), store.pieces(part)

    def read(tensor: Tensor) -> bytes:
        data = pieces.read(tensor.offset, tensor.nbytes)
        if len(data) != tensor.nbytes:
            raise BadModelFile(f"{manifest.name} is damaged: {tensor.name} is cut short")
        return data

    return header.tensors, read


def begin_key(keys: ProofKeys, store: Store, manifest: Manifest, now_s: float) -> list[int]:
    """Begin a model's key, or go on with it; return the layers that are not folded.

    Raises as ``ProofKeys.begin`` and ``part_tensors``, whose metadata part must be here.
    """
    if manifest.base:
        raise UnsupportedModel("layers with an adapter cannot be proven: their key would lack it")
    tensors, read = part_tensors(store, manifest, METADATA)
    header = whole_header(store, manifest, METADATA)
    return keys.begin(manifest, header, lambda tensor: read(tensors[tensor.name]), now_s)


def fold_part(keys: ProofKeys, store: Store, manifest: Manifest, layer: int) -> None:
    """Fold a layer whose part is here; raises as ``ProofKeys.fold`` and ``part_tensors``."""
    tensors, read = part_tensors(store, manifest, layer_part(layer))
    keys.fold(manifest.id, layer, tensors, read)


_SHAPE_FIELDS = [each.name for each in fields(LayerShape)][:-1]


def _read(path: Path) -> list[Any]:
    values: list[Any] = msgpack.unpackb(path.read_bytes())
    if values[0] != _FORMAT:
        raise ValueError(f"{path} is of another format")
    return values[1:]


def _packed_shape(shape: LayerShape) -> list[Any]:
    *plain, factors = astuple(shape)
    return [*plain, None if factors is None else factors.tobytes()]


def _shape(values: list[Any]) -> LayerShape:
    *plain, factors = values
    told: dict[str, Any] = dict(zip(_SHAPE_FIELDS, plain, strict=True))
    return LayerShape(**told, factors=None if factors is None else _floats(factors))


def _packed_layer(key: LayerKey) -> list[Any]:
    matrices = []
    for name, each in key.matrices.items():
        assert isinstance(each, FoldedMatrix)
        minima = None if each.minima is None else each.minima.tobytes()
        blocks = [each.weights.tobytes(), minima, len(each.weights)]
        matrices.append([name, each.name, each.stored_as, each.outputs, *blocks])
    vectors = [[name, each.tobytes()] for name, each in key.vectors.items()]
    return [matrices, vectors]


def _layer(seed: bytes, values: list[Any]) -> LayerKey:
    matrices = {}
    for name, whole_name, stored_as, outputs, weights, minima, rows in values[0]:
        folded = _floats(weights).reshape(rows, -1)
        least = None if minima is None else _floats(minima).reshape(rows, -1)
        matrices[name] = FoldedMatrix(seed, whole_name, stored_as, outputs, folded, least)
    return LayerKey(matrices, {name: _floats(data) for name, data in values[1]})


def _floats(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4")
