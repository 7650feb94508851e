"""Chains that tests make: a token, a payer with a funded chequebook, and somebody to pay."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.statement import Statement
from p2pinfer.node import settlement
from p2pinfer.node.ledger_db import Side, open_books
from p2pinfer.node.settlement import Chequebook, Voucher, Vouchers, voucher_for
from tests.support.command_line import run
from tests.support.swarm import KEYS

USER, SERVER = KEYS[:2]
FUNDS = 10**20
DEPOSIT = 10**9
TOKEN = Path(__file__).parent / "token.json"


@dataclass
class Chain:
    """A chain, a token, and a payer with a funded chequebook."""

    web3: Any
    token: Any
    payer: Any
    payee: Any
    book: Chequebook
    kept: Vouchers

    def owns(self, address: str) -> int:
        """Return how much of the token somebody has."""
        return int(self.token.functions.balanceOf(address).call())

    def voucher(self, work: int, price: int = 1_000_000, payer: Any = None) -> Voucher:
        """Return a payer's voucher for a statement."""
        made = Statement(USER.peer_id, SERVER.peer_id, work, work)
        made = evolve(made, signature=USER.sign(made.to_sign()))
        by, to = payer or self.payer, self.payee.address
        return voucher_for(by, self.book.chain, self.book.address, to, made, price)

    def as_payee(self) -> Chequebook:
        """Return the chequebook in the payee's hands."""
        return Chequebook(self.web3, self.payee, self.book.address)


def make_chain(web3: Any, folder: Path) -> Chain:
    """Make all that on a chain whose first account is rich, and unlocked."""
    from eth_account import Account

    bank, payer, payee = web3.eth.accounts[0], Account.create(), Account.create()
    made = json.loads(TOKEN.read_text())
    factory = web3.eth.contract(abi=made["abi"], bytecode=made["bytecode"])
    mined = web3.eth.wait_for_transaction_receipt(factory.constructor().transact({"from": bank}))
    token = web3.eth.contract(address=mined["contractAddress"], abi=made["abi"])
    for each in (payer, payee):
        web3.eth.send_transaction({"from": bank, "to": each.address, "value": 10**18})
    token.functions.transfer(payer.address, FUNDS).transact({"from": bank})
    book = Chequebook.deploy(web3, payer, token.address)
    book.fund(DEPOSIT)
    return Chain(web3, token, payer, payee, book, Vouchers(folder / "vouchers"))


def settle_by_command_line(
    chain: Chain,
    rpc: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Go from an account to a redeemed voucher; what cannot be done is a sentence."""
    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setattr(settlement, "SCRYPT_N", 2)
    monkeypatch.setenv("P2PINFER_RPC", rpc)
    monkeypatch.setenv("P2PINFER_PASSWORD_FILE", str(tmp_path / "password"))

    def at(home: str, *words: str, code: int = 0) -> str:
        monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / home))
        assert run(monkeypatch, "settle", *words) == code
        said = capsys.readouterr()
        return said.err if code else said.out.strip()

    payer, payee = at("payer", "account"), at("payee", "account")
    assert at("payer", "account") == payer != payee
    bank = chain.web3.eth.accounts[0]
    for each in (payer, payee):
        chain.web3.eth.send_transaction({"from": bank, "to": each, "value": 10**18})
    chain.token.functions.transfer(payer, 10**6).transact({"from": bank})
    book = ("--chequebook", at("payer", "deploy", chain.token.address))
    assert at("payer", "fund", "5000", *book) == "deposited: 5,000 in all"
    signs = ("voucher", SERVER.peer_id, payee, "--price", "1000000", *book)
    assert "nothing was stated" in at("payer", *signs, code=2)
    entry = LedgerEntry(SERVER.peer_id, USER.peer_id, bytes(32), 1, 2, 1200, 1_000_000)
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "payer"))
    books = open_books()
    books.keep(Side.USED, [entry])
    books.state(USER.peer_id, USER.sign)
    line = at("payer", *signs)
    assert "this account is" in at("payer", "redeem", line, *book, code=2)
    assert at("payee", "redeem", line, *book) == "redeemed: 1,200"
    assert at("payee", "redeem", line, *book) == at("payee", "redeem", *book) == "redeemed: 0"
    assert chain.owns(payee) == 1200
    assert "changed" in at("payee", "redeem", line.replace("1200", "1300"), *book, code=2)
    assert "no address" in at("payer", "deploy", "me", code=2)
    assert at("payer", "withdraw", *book) == "withdrawn: 0"
    assert "give notice first" in at("payer", "withdraw", *book, code=2)
