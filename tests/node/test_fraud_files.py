"""Fraud proofs as files: saved, loaded when a node starts, and checked by hand."""

from pathlib import Path

import pytest
from attrs import evolve

from p2pinfer.core.ids import ModelId, SessionId
from p2pinfer.engine.store.store import Store
from p2pinfer.node import fraud_files
from p2pinfer.node.fraud_files import ProofFiles
from p2pinfer.node.verify import verify_file
from tests.support.proofs import FILE, PROOF, TERMS, TWO, file


def test_saved_proofs_are_loaded(tmp_path: Path) -> None:
    """Once each, only for the given model, and not if damaged since."""
    files = ProofFiles(tmp_path / "proofs")
    assert list(files.load(TERMS.model)) == []
    path = files.keep(PROOF, FILE)
    assert files.keep(PROOF, FILE) == path
    other = files.keep(TWO, file(TWO))
    assert sorted(each.name for each in path.parent.iterdir()) == sorted((path.name, other.name))
    assert [data for _, data in files.load(TERMS.model)] == [FILE, file(TWO)]
    assert list(files.load(ModelId("cd" * 32))) == []
    other.write_bytes(file(TWO)[:-1])
    assert [found for found, _ in files.load(TERMS.model)] == [PROOF]


def test_the_number_of_files_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are deleted first."""
    monkeypatch.setattr(fraud_files, "FILES_MAX", 2)
    files = ProofFiles(tmp_path)
    for number in range(4):
        found = evolve(PROOF, terms=evolve(TERMS, session=SessionId(bytes([number]) * 16)))
        files.keep(found, file(found))
    assert len(list(tmp_path.iterdir())) == 2


async def test_a_proof_is_checked_as_far_as_possible(tmp_path: Path) -> None:
    """Two receipts need no layers, rows need the layers, and a changed byte fails."""
    store = Store(tmp_path)
    found = await verify_file(file(TWO), store)
    assert (found.held, found.findings[-1].held) == (True, True)
    found = await verify_file(FILE, store)
    assert (found.held, found.findings[-1].held) == (True, None)
    spoilt = FILE[:700] + bytes([FILE[700] ^ 1]) + FILE[701:]
    found = await verify_file(spoilt, store)
    assert not found.held
    assert "section rows, bytes" in found.findings[-1].text
