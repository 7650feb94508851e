"""Vouchers on a real EVM, without a network: what is paid, once, and to the right one."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from p2pinfer.core.errors import UserError
from p2pinfer.core.statement import Statement
from p2pinfer.node import settlement
from p2pinfer.node.settlement import ChainError, Voucher, Vouchers
from tests.support.chains import (
    DEPOSIT,
    SERVER,
    USER,
    Chain,
    make_chain,
    settle_by_command_line,
)

pytestmark = pytest.mark.skipif(
    not find_spec("eth_tester"),
    reason="there is no EVM here: make chain, and tests/interop/test_chain.py",
)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """Start a chain in this process."""
    from web3 import EthereumTesterProvider, Web3

    return make_chain(Web3(EthereumTesterProvider()), tmp_path)


def test_a_voucher_is_redeemed_once_and_the_next_one_pays_the_rest(chain: Chain) -> None:
    """Cumulative, like the statement that it is for; a replay pays nothing."""
    book = chain.as_payee()
    first, second = chain.voucher(1000), chain.voucher(1500)
    assert chain.book.deposit(chain.payer.address) == DEPOSIT
    assert book.redeem(first, chain.kept) == 1000
    assert chain.owns(chain.payee.address) == 1000
    assert book.redeem(first, chain.kept) == 0
    assert book.redeem(second, chain.kept) == 500
    assert book.redeem(first, chain.kept) == 0
    assert chain.owns(chain.payee.address) == chain.kept.redeemed(second) == 1500
    assert chain.book.deposit(chain.payer.address) == DEPOSIT - 1500


def test_the_chain_itself_pays_a_replay_nothing(chain: Chain) -> None:
    """Also where it is sent without looking."""
    voucher, book = chain.voucher(1000), chain.as_payee()
    redeem = book._contract.functions.redeem
    signature = voucher.signature
    parts = signature[64], signature[:32], signature[32:64]
    stated = settlement.digest(voucher.statement)
    call = redeem(voucher.payer, voucher.payee, voucher.total, stated, *parts)
    for _ in range(2):
        settlement.send(chain.web3, chain.payee, call)
        assert chain.owns(chain.payee.address) == 1000


@pytest.mark.parametrize(
    "change",
    [
        {"total": 10**6},
        {"payee": "0x" + "11" * 20},
        {"chequebook": "0x" + "22" * 20},
        {"chain": 1},
        {"statement": "other"},
        {"signature": bytes(65)},
    ],
)
def test_what_was_changed_is_refused(chain: Chain, change: dict[str, Any]) -> None:
    """Before it is kept; and by the chain, whatever this program says."""
    voucher = chain.voucher(1000)
    if "statement" in change:
        change = {"statement": Statement(USER.peer_id, SERVER.peer_id, 9, 9, bytes(64))}
    changed = evolve(voucher, **change)
    with pytest.raises(UserError, match=r"not signed by|no voucher"):
        Voucher.decode(changed.encode())
    if not {"chain", "chequebook"} & change.keys():
        with pytest.raises(ChainError):
            chain.as_payee().redeem(changed, chain.kept)
    else:
        with pytest.raises(UserError, match="is for the chequebook"):
            chain.as_payee().redeem(changed, chain.kept)
    assert chain.owns(chain.payee.address) == 0


def test_a_wrong_signer_is_refused(chain: Chain) -> None:
    """The payee cannot sign for the payer."""
    forged = evolve(chain.voucher(1000, payer=chain.payee), payer=chain.payer.address)
    with pytest.raises(UserError, match="not signed by"):
        Voucher.decode(forged.encode())
    with pytest.raises(ChainError, match="not signed by the payer"):
        chain.as_payee().redeem(forged, chain.kept)
    assert chain.owns(chain.payee.address) == 0


@pytest.mark.parametrize("where", ["keep", "send", "note_redeemed"])
def test_a_crash_at_any_step_loses_nothing(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the voucher is sent, before it is mined, or before that is written down."""
    voucher, book = chain.voucher(1000), chain.as_payee()
    place: Any = settlement if where == "send" else Vouchers
    real = getattr(place, where)

    def crash(*args: Any) -> None:
        if where == "send":
            real(*args)  # mined, and this process never hears of it
        if where == "keep":
            real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, where, crash)
    with pytest.raises(KeyboardInterrupt):
        book.redeem(voucher, chain.kept)
    monkeypatch.setattr(place, where, real)
    again = Vouchers(chain.kept._folder)
    assert [each.total for each in again.all()] == [1000]
    for each in again.all():
        book.redeem(each, again)
    assert chain.owns(chain.payee.address) == again.redeemed(voucher) == 1000


def test_a_deposit_that_is_too_small_pays_what_there_is(chain: Chain) -> None:
    """The rest follows once the payer has funded it."""
    voucher, book = chain.voucher(DEPOSIT + 500), chain.as_payee()
    assert book.redeem(voucher, chain.kept) == DEPOSIT
    assert book.redeem(voucher, chain.kept) == 0
    chain.book.fund(10_000)
    assert book.redeem(voucher, chain.kept) == 500


def test_a_payer_leaves_after_a_days_notice(chain: Chain) -> None:
    """Until then payees can redeem."""
    with pytest.raises(ChainError, match="give notice first"):
        chain.book.withdraw()
    chain.book.leave()
    with pytest.raises(ChainError):
        chain.book.withdraw()
    assert chain.as_payee().redeem(chain.voucher(1000), chain.kept) == 1000
    tester = chain.web3.provider.ethereum_tester
    tester.time_travel(tester.get_block_by_number()["timestamp"] + 90_000)
    before = chain.owns(chain.payer.address)
    chain.book.withdraw()
    assert chain.owns(chain.payer.address) == before + DEPOSIT - 1000


def test_a_voucher_is_hashed_as_the_standard_says() -> None:
    """By hand, from EIP-712's rules, over Keccak of another library."""
    from Crypto.Hash import keccak
    from eth_account.messages import _hash_eip191_message, encode_typed_data

    def hashed(data: bytes) -> bytes:
        return bytes(keccak.new(digest_bits=256, data=data).digest())

    def word(number: int) -> bytes:
        return number.to_bytes(32, "big")

    statement = Statement(USER.peer_id, SERVER.peer_id, 1, 5, bytes(64))
    one, two, three = ("0x" + f"{number:040x}" for number in (0xA1, 0xB2, 0xC3))
    voucher = Voucher(5, one, two, three, 1234, statement)
    kind = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    domain = hashed(
        hashed(kind) + hashed(b"p2pinfer") + hashed(b"1") + word(5) + word(int(one, 16))
    )
    kind = b"Voucher(address payer,address payee,uint256 total,bytes32 statement)"
    ends = word(int(two, 16)) + word(int(three, 16))
    body = hashed(hashed(kind) + ends + word(1234) + settlement.digest(statement))
    message = encode_typed_data(full_message=voucher.typed())
    assert _hash_eip191_message(message) == hashed(b"\x19\x01" + domain + body)


def test_the_command_line_pays_and_is_paid(
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From an account to a redeemed voucher; what cannot be done is a sentence."""
    monkeypatch.setattr(settlement, "connect", lambda _: chain.web3)
    settle_by_command_line(chain, "http://127.0.0.1:1", tmp_path, monkeypatch, capsys)


def test_a_key_is_encrypted_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the password nothing opens, and the file says nothing of it."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    monkeypatch.setattr(settlement, "SCRYPT_N", 2)
    with pytest.raises(UserError, match="no account yet"):
        settlement.open_account("secret")
    address = settlement.create_account("secret")
    account = settlement.open_account("secret")
    assert account.address == address
    text = (settlement.settle_dir() / "account.json").read_text()
    assert account.key.hex().removeprefix("0x") not in text
    with pytest.raises(UserError, match="cannot be opened"):
        settlement.open_account("wrong")
    with pytest.raises(UserError, match="already"):
        settlement.create_account("secret")


def test_the_compiled_contract_is_that_of_the_source() -> None:
    """As the compiler gives it; both are in the package."""
    compiler = pytest.importorskip("vyper")
    folder = Path(settlement.__file__).parent / "contracts"
    shipped = json.loads((folder / "chequebook.json").read_text())
    source = (folder / "chequebook.vy").read_text()
    made = compiler.compile_code(source, output_formats=["abi", "bytecode"])
    assert (shipped["abi"], shipped["bytecode"]) == (made["abi"], made["bytecode"])
