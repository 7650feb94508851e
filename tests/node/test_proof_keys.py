"""Proof keys: made from layers that are here or fetched, and what they judge."""

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from p2pinfer.core.certificate import Certificate, StageClaim
from p2pinfer.core.continuity import Vouched
from p2pinfer.core.errors import UnsupportedModel, UserError
from p2pinfer.core.fraud import BY_STEPS, FraudProof, parse, to_sign
from p2pinfer.core.manifest import METADATA, Manifest, layer_part
from p2pinfer.core.opening import OpenedTrace, encode
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sections import BadFile
from p2pinfer.core.shown_layers import ShownLayers, first_start
from p2pinfer.core.traced import Traced
from p2pinfer.core.verdict import cut_to, judge_row
from p2pinfer.engine.llama.binding import Settings, Slice
from p2pinfer.engine.store.adapters import add_adapter
from p2pinfer.engine.store.proof_keys import RENEWED_S, ProofKeys
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from p2pinfer.node.proof_keys import make_proof_key
from p2pinfer.node.verify import verify_file
from p2pinfer.node.verify_openings import check_openings
from peers.audits.inspector import choose_rows
from peers.audits.steps import StepsJudge
from peers.parts.protocol import in_place
from tests.support.adapters import write_adapter
from tests.support.openings import ASKER, STAGE, Known, Session, cut_to_layers, known
from tests.support.tiny_models import TINY, quantise, write_tiny
from tests.support.toys import copy_parts, quiet
from transports.identity import verify

LAYERS = 7
NOW_S = 1e9


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a tiny model's file."""
    folder = tmp_path_factory.mktemp("keys")
    write_tiny(TINY["llama"], folder / "full.gguf")
    quantise(folder / "full.gguf", folder / "tiny.gguf", "Q4_1")
    return folder / "tiny.gguf"


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """Provide a store that has all of it."""
    store = Store(tmp_path_factory.mktemp("whole"))
    return store, add_model(store, file, quiet)


def draw(size: int) -> bytes:
    """Draw the same seed as ``known`` does."""
    return bytes(range(size))


def held(path: Path, whole: tuple[Store, Manifest], *parts: str) -> Store:
    """Make a store of some parts."""
    store = Store(path)
    copy_parts(whole[0], store, whole[1], (METADATA, *parts))
    return store


async def test_a_key_survives_on_disk_and_only_its_owner_reads_it(
    file: Path, whole: tuple[Store, Manifest]
) -> None:
    """What is loaded judges as what was folded; the model's removal takes it away."""
    store, manifest = whole
    keys, said = ProofKeys(store, draw), list[tuple[int, int]]()
    made = await make_proof_key(
        keys, store, manifest, NOW_S, tell=lambda done, of: said.append((done, of))
    )
    assert said == [(count, LAYERS) for count in range(LAYERS + 1)]
    plain = known(file, LAYERS)
    numbers = np.random.default_rng(1).standard_normal(256, np.float32)
    out = np.random.default_rng(2).standard_normal(512, np.float32)
    for layer in range(LAYERS):
        ours, theirs = made.layers[layer], plain.keys[layer]
        for name in ("ffn_up.weight", "ffn_gate.weight"):
            one, other = ours.matrices[name], theirs.matrices[name]
            assert one.residual(numbers, out) == other.residual(numbers, out) > 0
        assert ours.vectors.keys() == theirs.vectors.keys()
    factors = made.shape.factors
    assert factors is not None
    assert (factors == plain.shape.factors).all()
    folder = store.root / "proof-keys" / manifest.id
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert (stat.S_IMODE(folder.stat().st_mode), modes) == (0o700, {0o600})


async def test_making_goes_on_where_it_was(tmp_path: Path, whole: tuple[Store, Manifest]) -> None:
    """Folded layers stay, though a layer that is missing ends it; each is fetched once, alone."""
    manifest = whole[1]
    store = held(tmp_path, whole, layer_part(0), layer_part(1))
    keys, fetched = ProofKeys(store, draw), list[str]()
    with pytest.raises(UserError, match=r"layer\.2.*and 1 more.*--bootstrap"):
        await make_proof_key(keys, store, manifest, NOW_S)

    async def fetch(into: Store, name: str) -> None:
        assert into.root.parent == store.root
        if len(fetched) == 3:
            raise UserError("interrupted")
        fetched.append(name)
        copy_parts(whole[0], into, manifest, [name])

    with pytest.raises(UserError, match="interrupted"):
        await make_proof_key(keys, store, manifest, NOW_S, fetch)
    assert keys.folded(manifest.id) == {0, 1, 2, 3, 4}
    fetched[:] = fetched[:1]
    made = await make_proof_key(keys, store, manifest, NOW_S + 1, fetch)
    assert made.layers.keys() == set(range(LAYERS))
    assert fetched == [layer_part(2), layer_part(5), layer_part(6)]
    assert not store.held(manifest.part(layer_part(5)))
    assert not list(store.root.glob("folding-*"))


async def test_a_key_is_made_anew_in_time(tmp_path: Path, whole: tuple[Store, Manifest]) -> None:
    """After a week, after a clock that went back, and after a rejection; never unasked."""
    manifest = whole[1]
    store = held(tmp_path, whole, *map(layer_part, range(LAYERS)))
    seeds = [bytes([number]) * 32 for number in range(4)]
    keys = ProofKeys(store, lambda _: seeds.pop(0))
    assert not keys.is_due(manifest.id, NOW_S)
    await make_proof_key(keys, store, manifest, NOW_S)
    await make_proof_key(keys, store, manifest, NOW_S + RENEWED_S - 1)
    assert len(seeds) == 3
    assert not keys.is_due(manifest.id, NOW_S + 1)
    assert keys.is_due(manifest.id, NOW_S + RENEWED_S)
    assert keys.is_due(manifest.id, NOW_S - 1)
    await make_proof_key(keys, store, manifest, NOW_S + RENEWED_S)
    assert len(seeds) == 2
    await StepsJudge(keys, store, manifest, in_place).renew()
    assert keys.is_due(manifest.id, NOW_S + RENEWED_S)
    assert keys.load(manifest.id) is None
    store.remove(manifest.id)
    assert not keys.is_due(manifest.id, NOW_S + RENEWED_S)
    assert not list(store.root.glob("proof-keys/*"))


async def test_a_damaged_key_is_none(tmp_path: Path, whole: tuple[Store, Manifest]) -> None:
    """It is not used; making it again helps."""
    manifest = whole[1]
    store = held(tmp_path, whole, *map(layer_part, range(LAYERS)))
    keys = ProofKeys(store, draw)
    await make_proof_key(keys, store, manifest, NOW_S)
    (store.root / "proof-keys" / manifest.id / "seed").write_bytes(b"\xc1")
    assert keys.load(manifest.id) is None
    assert len((await make_proof_key(keys, store, manifest, NOW_S)).layers) == LAYERS


async def test_experts_have_no_key(tmp_path: Path) -> None:
    """The refusal says why; with the layers alone nobody is asked to open any, and it says so."""
    write_tiny(TINY["mixtral"], tmp_path / "experts.gguf")
    store = Store(tmp_path / "store")
    manifest = add_model(store, tmp_path / "experts.gguf", quiet)
    with pytest.raises(UnsupportedModel, match="experts"):
        await make_proof_key(ProofKeys(store, draw), store, manifest, NOW_S)
    judge = StepsJudge(ProofKeys(store, draw), store, manifest, in_place)
    assert not judge.covers([3])
    assert judge.lacks([3]).startswith("layers with experts cannot be proven")


async def test_an_adapter_is_never_passed_over(
    file: Path, tmp_path: Path, whole: tuple[Store, Manifest]
) -> None:
    """Its base's layers alone would prove rows of a stage that leaves it out."""
    store = held(tmp_path / "store", whole, *map(layer_part, range(LAYERS)))
    write_adapter(file, tmp_path / "adapter.gguf")
    child = add_adapter(store, tmp_path / "adapter.gguf", whole[1])
    keys = ProofKeys(store, draw)
    with pytest.raises(UnsupportedModel, match="adapter"):
        await make_proof_key(keys, store, child, NOW_S)
    judge = StepsJudge(keys, store, child, in_place)
    assert not judge.covers([3])
    adapted = [layer for layer in range(LAYERS) if child.is_adapted(layer)]
    assert "adapter" in judge.lacks(adapted)
    assert StepsJudge(keys, store, whole[1], in_place).covers([3])


@pytest.fixture(scope="module")
def session(file: Path, whole: tuple[Store, Manifest]) -> Iterator[tuple[Session, Known]]:
    """Provide a short session with the model."""
    part = Slice(file, logits=False, settings=Settings(), sessions=1, context=64)
    with closing(part):
        session, model = Session(part, LAYERS, model=whole[1].id), known(file, LAYERS)
        session.read(model.rows(20, 1), Regime.WIDE)
        yield session, model


def falsified(session: tuple[Session, Known], step: Traced) -> OpenedTrace:
    """Open a row with a false step in layer 3."""
    computed = session[0].compute(19)
    given, steps, keys, values = computed[3]
    altered = np.frombuffer(steps[list(Traced).index(step)], "<f4").copy()
    altered[3] *= 1.5
    at = list(Traced).index(step)
    computed[3] = (given, (*steps[:at], altered.tobytes(), *steps[at + 1 :]), keys, values)
    return session[0].open(19, computed)


def accuse(opening: OpenedTrace) -> tuple[FraudProof, bytes]:
    """Accuse the stage, as the session's requester."""
    pledge = opening.pledge
    proof = FraudProof(pledge.terms, pledge.peer, 12, (pledge.receipt,), opening=encode(opening))
    body = proof.body()
    return proof, body + ASKER.sign(to_sign(body))


@pytest.mark.parametrize("step", [Traced.UP, Traced.ATTENTION, Traced.OUT])
async def test_a_false_step_is_proven_to_who_holds_that_layer(
    session: tuple[Session, Known], whole: tuple[Store, Manifest], tmp_path: Path, step: Traced
) -> None:
    """By one layer's part alone, or by a key; who has neither does not ask for the proof."""
    opened, model = session
    opening = falsified(session, step)
    fault = judge_row(opening, model.shape, model.keys).fault
    assert fault
    assert (fault.layer, fault.step) == (3, step)
    cut = cut_to(opening, fault)
    assert len(cut.layers) == 1
    _, data = accuse(cut)
    parsed = parse(data, verify)
    case = parsed.case()
    assert (case.first, case.end, case.numerics, case.rows) == (3, 4, BY_STEPS, 1)
    one = held(tmp_path / "one", whole, layer_part(3))
    judge = StepsJudge(ProofKeys(one, draw), one, whole[1], in_place)
    assert judge.covers([3])
    assert await judge.convicts(parsed)
    assert not judge.covers([2, 3])
    honest = parse(accuse(cut_to(opened.open(19), fault))[1], verify)
    assert await judge.convicts(honest) is False
    other = held(tmp_path / "other", whole, layer_part(4))
    assert not StepsJudge(ProofKeys(other, draw), other, whole[1], in_place).covers([3])
    assert await StepsJudge(ProofKeys(other, draw), other, whole[1], in_place).convicts(parsed) is (
        None
    )


async def test_a_rejected_row_is_proven_before_the_key_is_made_again(
    session: tuple[Session, Known], whole: tuple[Store, Manifest], tmp_path: Path
) -> None:
    """Who has no layers, only a key that is to be forgotten, can still accuse."""
    manifest = whole[1]
    store, seeds = held(tmp_path, whole), [bytes([number]) * 32 for number in range(2)]
    keys = ProofKeys(store, lambda _: seeds.pop(0))

    async def fetch(into: Store, name: str) -> None:
        copy_parts(whole[0], into, manifest, [name])

    await make_proof_key(keys, store, manifest, NOW_S, fetch)
    judge = StepsJudge(keys, store, manifest, in_place)
    opening = falsified(session, Traced.UP)
    fault = (await judge.judge(opening)).fault
    assert fault
    await judge.renew()
    assert not keys.folded(manifest.id)
    assert judge.covers([3])
    assert await judge.convicts(parse(accuse(cut_to(opening, fault))[1], verify))
    await make_proof_key(keys, store, manifest, NOW_S, fetch)
    judge.take_new()
    assert not seeds
    assert (await judge.judge(session[0].open(19))).held


async def test_what_an_accused_did_not_sign_is_no_proof(
    session: tuple[Session, Known],
) -> None:
    """Nor is an opening beside other evidence, of another stage, or of an unknown machine."""
    opening = falsified(session, Traced.UP)
    good, _ = accuse(opening)
    pledge = opening.pledge
    arm = evolve(opening, pledge=evolve(pledge, machine="aarch64"))
    for bad in (
        evolve(good, opening=encode(evolve(opening, signature=bytes(64)))),
        evolve(good, opening=good.opening[:-1]),
        evolve(good, opening=encode(arm)),
        evolve(good, accused=ASKER.peer_id),
        evolve(good, terms=evolve(good.terms, seal=bytes(32))),
        evolve(good, receipts=(pledge.receipt, pledge.receipt)),
        evolve(good, rows=b"1234"),
    ):
        body = bad.body()
        with pytest.raises(BadFile):
            parse(body + ASKER.sign(to_sign(body)), verify)
    assert STAGE.peer_id == good.accused


async def test_a_saved_accusation_is_checked_offline(
    session: tuple[Session, Known], whole: tuple[Store, Manifest], tmp_path: Path
) -> None:
    """It holds or fails where the layers are here; where the model is not, nothing is said."""
    store, manifest = whole
    opened, _ = session
    false, true = falsified(session, Traced.UP), opened.open(19)
    data = accuse(false)[1]
    found = await verify_file(data, Store(tmp_path))
    assert found.held
    assert found.findings[-1].held is None
    found = await verify_file(data, store)
    assert found.findings[-1].held
    assert "layer 3: ffn_up" in found.findings[-1].text
    found = await verify_file(accuse(true)[1], store)
    assert found.findings[-1].held is False
    assert manifest.id == false.pledge.terms.model


async def test_how_long_a_layer_is_follows_from_a_key_or_from_it(
    session: tuple[Session, Known], whole: tuple[Store, Manifest], tmp_path: Path
) -> None:
    """The same numbers, which are those of what a stage sends."""
    store, manifest = whole
    (opened, _), plain = session, Store(tmp_path)
    copy_parts(store, plain, manifest, (METADATA, layer_part(3)))
    of_layer = await StepsJudge(ProofKeys(plain, draw), plain, manifest, in_place).layer_bytes(3)
    layer = opened.open(19).layers[3]
    assert of_layer.row == len(layer.given)
    assert of_layer.steps == len(layer.given) + sum(map(len, layer.steps))
    assert of_layer.cell * 20 == len(layer.keys) + len(layer.values)
    keys = ProofKeys(store, draw)
    await make_proof_key(keys, store, manifest, NOW_S)
    assert await StepsJudge(keys, store, manifest, in_place).layer_bytes(3) == of_layer


async def test_a_certificate_of_some_layers_is_checked_offline(
    session: tuple[Session, Known], whole: tuple[Store, Manifest]
) -> None:
    """They must be those that the nonce chose, and a false step in one of them is found."""
    opened, _ = session
    nonce, receipt = b"n" * 32, opened.open(19).receipt
    positions, start, shown = choose_rows(nonce, receipt), first_start(nonce, receipt), []
    for _ in positions:
        shown.append(ShownLayers(start, 3, 2))
        start = (start + 2) % LAYERS
    rows = [
        cut_to_layers(opened.open(at), each)
        for at, each in reversed([*zip(positions, shown, strict=True)])
    ][::-1]
    pledge = rows[0].pledge
    stage = StageClaim(pledge.peer, receipt.first, receipt.end, (pledge.receipt,))
    vouched = [Vouched(pledge.peer, receipt.first, receipt.end, {20: receipt})]

    async def check(*kept: OpenedTrace) -> tuple[bool | None, str]:
        data = tuple(map(encode, kept))
        found = Certificate(
            pledge.terms, nonce, 0.0, (1,) * 20, (20,), "", (stage,), (), cut_openings=data
        )
        (said,) = await check_openings(found, vouched, whole[0])
        return said.held, said.text

    held, text = await check(*rows)
    assert held, text
    assert "holds: 29% of the layers; if a tenth of all its rows were false in one layer" in text
    assert (await check(*rows[:2]))[0], "those that there was room for"
    for others in (rows[1:], [rows[0], evolve(rows[1], layers=rows[1].layers[1:])]):
        held, text = await check(*others)
        assert held is False
        assert "not the layers that the nonce chose" in text
    layer = rows[0].layers[0]
    altered = evolve(layer, steps=(*layer.steps[:-1], layer.steps[-1][4:] + layer.steps[-1][:4]))
    held, text = await check(evolve(rows[0], layers=(altered, *rows[0].layers[1:])))
    assert held is False
    assert "steps are not those that were pledged" in text
