"""Judging openings with what this machine has of the layers: a proof key, or the layers themselves.

The layers themselves go first where another's accusation is judged: that tells nothing about the
key's secret numbers.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import trio

from p2pinfer.core.errors import P2pinferError, UnsupportedModel
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.layer_key import LayerKey, LayerShape
from p2pinfer.core.manifest import METADATA, Manifest, layer_part
from p2pinfer.core.opening import OpenedTrace, decode
from p2pinfer.core.shown_layers import LayerBytes, bytes_of
from p2pinfer.core.verdict import Verdict, judge_row
from p2pinfer.engine.gguf.layer_keys import layer_shape, whole_layer
from p2pinfer.engine.store.assemble import whole_header
from p2pinfer.engine.store.proof_keys import ProofKey, ProofKeys, part_tensors
from p2pinfer.engine.store.store import Store
from peers.parts.protocol import Run, in_thread

_log = logging.getLogger("p2pinfer.openings")


class StepsJudge:
    """Judges openings of one model.

    Args:
        keys: this machine's proof keys.
        store: whose layers are used where they are here.
        manifest: the model's.
        run: runs slow work, so that nothing else waits for it.
    """

    def __init__(
        self, keys: ProofKeys, store: Store, manifest: Manifest, run: Run = in_thread
    ) -> None:
        self.keys = keys
        self._store, self._manifest, self._run = store, manifest, run
        self._rejected = trio.Event()
        self._key: ProofKey | None = None
        self._shape: LayerShape | None = None

    def covers(self, layers: Iterable[int]) -> bool:
        """Whether all these layers can be judged here; those that an adapter changes never can."""
        folded = self.keys.folded(self._manifest.id) | (
            self._key.layers.keys() if self._key else set()
        )
        is_adapted = self._manifest.is_adapted
        is_here = all(
            (layer in folded or self._is_held(layer)) and not is_adapted(layer) for layer in layers
        )
        return is_here and not self._why_never()

    def lacks(self, layers: Iterable[int]) -> str:
        """Say why layers are not covered."""
        if why := self._why_never():
            return why
        if any(map(self._manifest.is_adapted, layers)):
            return "layers that an adapter changes cannot be proven"
        return (
            "this machine has neither its layers nor a proof key; to make one:"
            " p2pinfer model proof-key"
        )

    def _why_never(self) -> str:
        """Say why a model's layers are of a kind that cannot be judged; empty if they are not."""
        try:
            self._whole_shape()
        except UnsupportedModel as error:
            return str(error)
        except P2pinferError:  # its metadata is not here, and a key is of a known kind
            return ""
        return ""

    async def judge(self, opening: OpenedTrace, *, by_layers: bool = False) -> Verdict:
        """Check an opening's steps; its roots and signatures are checked elsewhere.

        Args:
            opening: of layers that are covered.
            by_layers: use the layers themselves where they are here, not the proof key.

        Raises:
            P2pinferError: what is here cannot be read, or is no longer here.
        """
        verdict: Verdict = await self._run(self._judge, opening, by_layers)
        return verdict

    async def layer_bytes(self, layer: int) -> LayerBytes:
        """Return how long what a covered layer shows is; raises as ``judge``."""
        found: LayerBytes = await self._run(self._layer_bytes, layer)
        return found

    async def convicts(self, proof: FraudProof) -> bool | None:
        """Whether a parsed proof with an opening holds; None if it cannot be decided."""
        try:
            verdict = await self.judge(decode(proof.opening), by_layers=True)
        except P2pinferError as error:
            _log.info("an opening cannot be judged: %s", error)
            return None
        if verdict.fault and not verdict.fault.is_provable:
            return None
        return not verdict.held

    async def renew(self) -> None:
        """Have the proof key made again after a rejection, which told a little about it.

        Until then this judge goes on with it: what it rejected is still to be proven to others.
        """
        await self._run(self.keys.expire, self._manifest.id)
        self._rejected.set()
        self._rejected = trio.Event()

    def take_new(self) -> None:
        """Use the key that was made again."""
        self._key = None

    async def wait_rejection(self) -> None:
        """Wait until the proof key is to be made again."""
        await self._rejected.wait()

    def _is_held(self, layer: int) -> bool:
        manifest = self._manifest
        return 0 <= layer < manifest.layers and self._store.held(manifest.part(layer_part(layer)))

    def _judge(self, opening: OpenedTrace, by_layers: bool) -> Verdict:
        keys, shape = self._keys([each.layer for each in opening.layers], by_layers=by_layers)
        return judge_row(opening, shape, keys)

    def _layer_bytes(self, layer: int) -> LayerBytes:
        keys, shape = self._keys([layer], by_layers=False)
        return bytes_of(keys[layer], shape)

    def _keys(
        self, numbers: Sequence[int], *, by_layers: bool
    ) -> tuple[dict[int, LayerKey], LayerShape]:
        """Return what layers are judged with, and their shape."""
        if any(map(self._manifest.is_adapted, numbers)):  # its steps are not a matrix's alone
            raise UnsupportedModel("layers that an adapter changes cannot be proven")
        if self._key is None or not self._key.layers.keys() >= set(numbers):
            self._key = self.keys.load(self._manifest.id)
        folded: Mapping[int, LayerKey] = self._key.layers if self._key else {}
        keys = {}
        for layer in numbers:
            if layer in folded and not (by_layers and self._is_held(layer)):
                keys[layer] = folded[layer]
            else:
                tensors, read = part_tensors(self._store, self._manifest, layer_part(layer))
                keys[layer] = whole_layer(layer, tensors, read)
        return keys, self._key.shape if self._key else self._whole_shape()

    def _whole_shape(self) -> LayerShape:
        if self._shape is None:
            tensors, read = part_tensors(self._store, self._manifest, METADATA)
            header = whole_header(self._store, self._manifest, METADATA)
            self._shape = layer_shape(header, lambda tensor: read(tensors[tensor.name]))
        return self._shape
