"""Machines that hold one layer of a model each, and judge by it what others accuse a peer of."""

from pathlib import Path

from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.manifest import METADATA, Manifest, layer_part
from p2pinfer.engine.store.store import Store
from p2pinfer.node.proof_keys import judge_of
from peers.audits.frauds import read
from peers.audits.steps import StepsJudge


class LayerHomes:
    """A store for each layer, with no engine and no proof key beside it.

    Nothing in them computes in any numerics class: they multiply a row by a matrix.

    Args:
        source: holds the whole model.
        manifest: the model's.
        folder: for the stores.
    """

    def __init__(self, source: Store, manifest: Manifest, folder: Path) -> None:
        self._source, self._manifest, self._folder = source, manifest, folder
        self._homes: dict[range, StepsJudge] = {}

    async def convict(self, file: bytes) -> int:
        """Have a proof's file judged by a home that holds no other layers than it names.

        Returns:
            How many layers that is; 0 if it does not convict the accused.
        """
        proof = read(file)
        assert isinstance(proof, FraudProof)
        case = proof.case()
        layers = range(case.first, case.end)
        judge = self._home(layers)
        if not judge.covers(layers) or judge.covers([case.first - 1]) or judge.covers([case.end]):
            return 0
        return len(layers) if await judge.convicts(proof) else 0

    def _home(self, layers: range) -> StepsJudge:
        if layers not in self._homes:
            store = Store(self._folder / f"layers-{layers.start}-{layers.stop}")
            store.add_manifest(self._manifest.encode(), self._manifest.id)
            for name in (METADATA, *map(layer_part, layers)):
                part = self._manifest.part(name)
                for index in range(len(part.chunks)):
                    store.write_chunk(part, index, self._source.read_chunk(part, index))
                store.finish(part)
            self._homes[layers] = judge_of(store, self._manifest)
        return self._homes[layers]
