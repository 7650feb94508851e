"""``p2pinfer settle``: pay for what was stated, or be paid, on an EVM chain; an extra."""

import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App

from p2pinfer.cli.options import OPTIONS, AsJson, option
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.logs import note

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

    from p2pinfer.node.settlement import Chequebook

app = App(name="settle", help_format="plaintext", group_parameters=OPTIONS)

Rpc = Annotated[str, option("rpc", "URL at which a node of the chain answers JSON-RPC.")]
Book = Annotated[str, option("chequebook", "Address of the chequebook contract.")]
Password = Annotated[
    Path | None,
    option("password-file", "File with the account's password. If omitted: it is asked for."),
]

IRREVERSIBLE = (
    "what is on the chain stays: try it on a test network first; nothing of this is audited"
)


@app.command
def account(*, password_file: Password = None, as_json: AsJson = False) -> None:
    """Make this machine's account, kept encrypted; prints its address, or that of the one here."""
    from p2pinfer.node.settlement import create_account, open_account, settle_dir

    password = read_password(password_file)
    if (settle_dir() / "account.json").exists():
        address = open_account(password).address
    else:
        address = create_account(password)
        note("who loses the password loses what the account owns")
    print(json.dumps({"address": address}) if as_json else address)


@app.command
def deploy(
    token: str, /, *, rpc: Rpc, password_file: Password = None, as_json: AsJson = False
) -> None:
    """Put a chequebook on the chain; prints its address.

    Parameters
    ----------
    token: str
        Address of the ERC-20 token that it pays in.
    """
    from p2pinfer.node.settlement import Chequebook, connect

    note(IRREVERSIBLE)
    web3, own = connect(rpc), read_account(password_file)
    made = Chequebook.deploy(web3, own, checked(token))
    said = {"chequebook": made.address, "chain": made.chain}
    print(json.dumps(said) if as_json else made.address)


@app.command
def fund(
    amount: int,
    /,
    *,
    rpc: Rpc,
    chequebook: Book,
    password_file: Password = None,
    as_json: AsJson = False,
) -> None:
    """Deposit some of the token, so that vouchers of this machine can be redeemed.

    Parameters
    ----------
    amount: int
        In the token's smallest unit.
    """
    book, own = open_book(rpc, chequebook, password_file)
    if amount <= 0:
        raise UserError("an amount is more than nothing")
    book.fund(amount)
    deposit = book.deposit(own.address)
    print(json.dumps({"deposit": deposit}) if as_json else f"deposited: {deposit:,} in all")


@app.command
def voucher(
    server: str,
    payee: str,
    /,
    *,
    price: Annotated[
        int,
        option("price", "Of a million megabyte-rows, in the token's smallest unit: you choose it."),
    ],
    rpc: Rpc,
    chequebook: Book,
    password_file: Password = None,
) -> None:
    """Sign for all that this machine has stated to a peer; prints one line to send to its owner.

    Parameters
    ----------
    server: str
        The peer, as p2pinfer status --ledger names it.
    payee: str
        The address that its owner has told you.
    """
    from p2pinfer.node.ledger_db import open_books
    from p2pinfer.node.settlement import newest_statement, voucher_for

    book, own = open_book(rpc, chequebook, password_file)
    stated = newest_statement(open_books().statements(), PeerId(server))
    made = voucher_for(own, book.chain, book.address, checked(payee), stated, price)
    print(made.encode())
    note(f"for {made.total:,}; the deposit is {book.deposit(own.address):,}")


@app.command
def redeem(
    line: str | None = None,
    /,
    *,
    rpc: Rpc,
    chequebook: Book,
    password_file: Password = None,
    as_json: AsJson = False,
) -> None:
    """Redeem a voucher; without one, all that are kept here and not paid in full.

    Parameters
    ----------
    line: str
        The voucher, a file with it, or - for standard input.
    """
    from p2pinfer.node.settlement import Voucher, Vouchers, settle_dir

    book, own = open_book(rpc, chequebook, password_file)
    kept = Vouchers(settle_dir() / "vouchers")
    if line is not None:
        got = Voucher.decode(read_line(line))
        if got.payee != own.address:
            raise UserError(f"the voucher pays {got.payee}, and this account is {own.address}")
        kept.keep(got)
    brought = 0
    for each in kept.all():
        is_here = (each.chain, each.chequebook) == (book.chain, book.address)
        if is_here and kept.redeemed(each) < each.total:
            brought += book.redeem(each, kept)
    print(json.dumps({"redeemed": brought}) if as_json else f"redeemed: {brought:,}")


@app.command
def withdraw(
    *, rpc: Rpc, chequebook: Book, password_file: Password = None, as_json: AsJson = False
) -> None:
    """Take this machine's deposit back: the first time gives notice, a day later it comes."""
    from p2pinfer.node.settlement import ChainError

    book, own = open_book(rpc, chequebook, password_file)
    deposit = book.deposit(own.address)
    try:
        book.withdraw()
    except ChainError:
        if book.leaves_at(own.address):
            raise
        book.leave()
        deposit = 0
        note("notice is given: the same command, a day later, brings the deposit back")
    print(json.dumps({"withdrawn": deposit}) if as_json else f"withdrawn: {deposit:,}")


def open_book(
    rpc: str, address: str, password_file: Path | None
) -> "tuple[Chequebook, LocalAccount]":
    """Return a chequebook in the hands of this machine's account; raises UserError."""
    from p2pinfer.node.settlement import Chequebook, connect

    web3 = connect(rpc)
    own = read_account(password_file)
    return Chequebook(web3, own, checked(address)), own


def read_account(password_file: Path | None) -> "LocalAccount":
    """Return this machine's account; raises UserError."""
    from p2pinfer.node.settlement import open_account

    return open_account(read_password(password_file))


def read_password(file: Path | None) -> str:
    """Return the account's password, from a file or a person; raises UserError."""
    if file is None:
        if not sys.stdin.isatty():
            raise UserError("there is nobody to ask for the password: name a --password-file")
        return getpass.getpass("password of the account: ", stream=sys.stderr)
    try:
        return file.expanduser().read_text().rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise UserError(f"the password file cannot be read: {error}") from error


def read_line(word: str) -> str:
    """Return a voucher that was typed, is in a file, or comes on standard input."""
    if word == "-":
        return sys.stdin.read(1 << 16)
    if word.lstrip().startswith("{"):
        return word
    try:
        return Path(word).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{word[:100]} is no voucher, and no file with one: {error}") from error


def checked(address: str) -> str:
    """Return an address with its checksum; raises UserError."""
    from p2pinfer.node.settlement import address_of

    return address_of(address)
