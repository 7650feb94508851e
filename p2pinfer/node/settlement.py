"""Settling what was stated, on an EVM chain: an extra, and off unless a person uses it.

A payer deposits a token in a chequebook (``contracts/chequebook.vy``) and signs a voucher for what
it has stated to a payee in all, at a price that it chooses; the payee redeems it. The chain is the
record: how much was paid is read there before anything is sent, so that a process that ends between
redeeming and writing that down pays nothing twice and loses nothing. Vouchers are written to disk
before they are redeemed.

What it rests on: the chain, the token, EIP-712 signatures over secp256k1, and the libraries web3
and eth-account; keys lie in an encrypted keystore (Web3 Secret Storage). Contract and composition
are ours, unaudited. What it does not give: a price, coins, or a deposit that is kept for one payee;
that an address is a peer's is what people tell each other.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, field, frozen
from blake3 import blake3

from p2pinfer.core.checks import blob
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.statement import Statement
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.places import data_dir

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount
    from web3 import Web3
    from web3.contract import Contract

RECEIPT_S_MAX: Final = 300.0
"""For a transaction to be mined: some chains take a minute when they are busy."""

NEEDED = "this needs web3: pip install 'p2pinfer[settle]'"

SCRYPT_N = 1 << 18
"""How hard a password is to guess: a second of a core, and 256 MB, a try."""

VOUCHERS_MAX: Final = 10_000
"""Kept of others; each is of another payer."""

_FILE_BYTES_MAX: Final = 1 << 14
_AMOUNT_MAX: Final = (1 << 256) - 1


class ChainError(UserError):
    """The chain, or the way to it, refused something."""


@frozen
class Voucher:
    """A payer's word, to a chequebook, for all that it owes a payee."""

    chain: int
    chequebook: str
    payer: str
    payee: str
    total: int
    """In the token's smallest unit."""
    statement: Statement
    """What it is for; the signature covers its hash."""
    signature: bytes = field(default=bytes(65), validator=blob(65, 65), repr=False)

    def typed(self) -> dict[str, Any]:
        """Return what is signed (EIP-712)."""
        text = [("name", "string"), ("version", "string")]
        domain = [*text, ("chainId", "uint256"), ("verifyingContract", "address")]
        fields = [("payer", "address"), ("payee", "address"), ("total", "uint256")]
        fields.append(("statement", "bytes32"))
        return {
            "types": {
                "EIP712Domain": [{"name": name, "type": kind} for name, kind in domain],
                "Voucher": [{"name": name, "type": kind} for name, kind in fields],
            },
            "primaryType": "Voucher",
            "domain": {
                "name": "p2pinfer",
                "version": "1",
                "chainId": self.chain,
                "verifyingContract": self.chequebook,
            },
            "message": {
                "payer": self.payer,
                "payee": self.payee,
                "total": self.total,
                "statement": digest(self.statement),
            },
        }

    def encode(self) -> str:
        """Return one line of JSON."""
        said = asdict(self) | {"signature": self.signature.hex()}
        said["statement"] |= {"signature": self.statement.signature.hex()}
        return json.dumps(said)

    @classmethod
    def decode(cls, text: str) -> "Voucher":
        """Read a voucher, and check that the payer signed it; raises UserError."""
        try:
            said = json.loads(text[:_FILE_BYTES_MAX])
            stated = said.pop("statement")
            stated["signature"] = bytes.fromhex(stated["signature"])
            said["signature"] = bytes.fromhex(said["signature"])
            found = cls(**said, statement=Statement(**stated))
            if type(found.total) is not int or not 0 < found.total <= _AMOUNT_MAX:
                raise ValueError("its total is no amount")
            signer = found.signer()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"this is no voucher: {error}") from error
        if signer != found.payer:
            raise UserError(f"the voucher is not signed by {found.payer}, or was changed")
        return found

    def signer(self) -> str:
        """Return the address that signed it; raises ValueError."""
        from eth_account import Account
        from eth_account.messages import encode_typed_data
        from eth_keys.exceptions import BadSignature

        try:
            message = encode_typed_data(full_message=self.typed())
            return str(Account.recover_message(message, signature=self.signature))
        except (BadSignature, ValueError, TypeError) as error:
            raise ValueError(f"its signature cannot be read: {error}") from error


def digest(statement: Statement) -> bytes:
    """Return what a voucher names a statement by: 32 bytes."""
    return blake3(statement.to_sign(), derive_key_context="p2pinfer voucher statement 1").digest()


def voucher_for(
    account: "LocalAccount", chain: int, chequebook: str, payee: str, stated: Statement, price: int
) -> Voucher:
    """Sign for a statement.

    Args:
        account: the payer's.
        chain: the chain's id.
        chequebook: the contract's address.
        payee: the server's address, as it told.
        stated: the payer's newest statement to that server.
        price: of a million megabyte-rows, in the token's smallest unit.
    """
    total = stated.amounts.worth * price // 1_000_000
    if not 0 < total <= _AMOUNT_MAX:
        raise UserError(f"at that price it is {total:,} in all: nothing to sign for")
    made = Voucher(chain, chequebook, account.address, payee, total, stated)
    signed = account.sign_typed_data(full_message=made.typed())
    return Voucher(
        chain, chequebook, account.address, payee, total, stated, bytes(signed.signature)
    )


class Vouchers:
    """Others' vouchers on this machine: the newest of each payer, and how much was redeemed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, voucher: Voucher) -> None:
        """Write a voucher down, unless a larger one of the same payer is here; raises UserError."""
        path = self._path(voucher)
        if path.exists() and Voucher.decode(path.read_text()).total >= voucher.total:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if sum(1 for _ in self._folder.glob("*.voucher")) >= VOUCHERS_MAX:
            raise UserError(
                f"{VOUCHERS_MAX:,} vouchers are kept: redeem some, and remove their files"
            )
        replace_text(path, voucher.encode())

    def all(self) -> Iterator[Voucher]:
        """Yield the kept vouchers; raises UserError."""
        for path in sorted(self._folder.glob("*.voucher")):
            yield Voucher.decode(path.read_text())

    def note_redeemed(self, voucher: Voucher, paid: int) -> None:
        """Write down how much the chain has paid so far; raises UserError."""
        path = self._path(voucher).with_suffix(".paid")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_text(path, json.dumps({"paid": paid, "total": voucher.total}))

    def redeemed(self, voucher: Voucher) -> int:
        """Return how much was noted."""
        path = self._path(voucher).with_suffix(".paid")
        try:
            paid: int = json.loads(path.read_text())["paid"]
        except (OSError, ValueError, KeyError):
            return 0
        return paid

    def _path(self, voucher: Voucher) -> Path:
        pair = f"{voucher.chain} {voucher.chequebook} {voucher.payer} {voucher.payee}".lower()
        return self._folder / f"{blake3(pair.encode()).hexdigest(16)}.voucher"


class Chequebook:
    """A chequebook contract on a chain.

    Args:
        web3: reaches the chain.
        account: signs transactions.
        address: the contract's.
    """

    def __init__(self, web3: "Web3", account: "LocalAccount", address: str) -> None:
        self._web3, self._account, self.address = web3, account, address
        self._contract: Contract = web3.eth.contract(address=address, abi=_artefact()["abi"])

    @classmethod
    def deploy(cls, web3: "Web3", account: "LocalAccount", token: str) -> "Chequebook":
        """Put a new one on the chain, for one token; raises ChainError."""
        made = _artefact()
        factory = web3.eth.contract(abi=made["abi"], bytecode=made["bytecode"])
        receipt = send(web3, account, factory.constructor(token))
        return cls(web3, account, receipt["contractAddress"])

    @property
    def chain(self) -> int:
        """The chain's id."""
        return int(self._web3.eth.chain_id)

    def fund(self, amount: int) -> None:
        """Allow the contract an amount of the token, and deposit it; raises ChainError."""
        token = self._contract.functions.token().call()
        allowed = self._web3.eth.contract(address=token, abi=_TOKEN)
        send(self._web3, self._account, allowed.functions.approve(self.address, amount))
        send(self._web3, self._account, self._contract.functions.fund(amount))

    def deposit(self, payer: str) -> int:
        """Return what a payer has deposited."""
        return int(self._contract.functions.deposit_of(payer).call())

    def paid(self, payer: str, payee: str) -> int:
        """Return what a payee had of a payer so far."""
        return int(self._contract.functions.paid(payer, payee).call())

    def redeem(self, voucher: Voucher, kept: Vouchers) -> int:
        """Redeem a voucher; return how much that has brought, 0 where it was redeemed before.

        Raises:
            ChainError: the chain refused it, or cannot be reached; it may be tried again.
            UserError: it is for another chain or chequebook.
        """
        if (voucher.chain, voucher.chequebook) != (self.chain, self.address):
            raise UserError(
                f"the voucher is for the chequebook {voucher.chequebook} on chain {voucher.chain}"
            )
        kept.keep(voucher)
        before = self.paid(voucher.payer, voucher.payee)
        if before < voucher.total and self.deposit(voucher.payer):
            v, r, s = voucher.signature[64], voucher.signature[:32], voucher.signature[32:64]
            stated = digest(voucher.statement)
            call = self._contract.functions.redeem(
                voucher.payer, voucher.payee, voucher.total, stated, v, r, s
            )
            send(self._web3, self._account, call)
        now = self.paid(voucher.payer, voucher.payee)
        kept.note_redeemed(voucher, now)
        return now - before

    def leaves_at(self, payer: str) -> int:
        """Return when a payer that gave notice can withdraw, in seconds since 1970; else 0."""
        return int(self._contract.functions.leaves_at(payer).call())

    def leave(self) -> None:
        """Give notice, a day before the deposit can be withdrawn; raises ChainError."""
        send(self._web3, self._account, self._contract.functions.leave())

    def withdraw(self) -> None:
        """Take the deposit back; raises ChainError."""
        send(self._web3, self._account, self._contract.functions.withdraw())


def send(web3: "Web3", account: "LocalAccount", call: Any) -> Mapping[str, Any]:
    """Sign a transaction, send it, and wait until it is mined; raises ChainError."""
    from web3.exceptions import Web3Exception

    try:
        nonce = web3.eth.get_transaction_count(account.address)
        made = call.build_transaction({"from": account.address, "nonce": nonce})
        sent = web3.eth.send_raw_transaction(account.sign_transaction(made).raw_transaction)
        receipt: Mapping[str, Any] = web3.eth.wait_for_transaction_receipt(sent, RECEIPT_S_MAX)
    except (Web3Exception, ValueError, OSError) as error:
        raise _refused(error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("eth_tester", "requests", "urllib3"):
            raise
        raise _refused(error) from error
    if receipt["status"] != 1:
        raise ChainError("the transaction was mined, and failed")
    return receipt


def _refused(error: Exception) -> ChainError:
    """Put a chain's refusal into words; nodes add the bytes that the words were made of."""
    why = getattr(error, "message", None) or error
    return ChainError(f"the chain refused it, or cannot be reached: {why}"[:500])


def connect(rpc: str) -> "Web3":
    """Return the way to a chain by JSON-RPC; raises UserError."""
    try:
        from web3 import HTTPProvider, Web3
    except ImportError as error:
        raise UserError(NEEDED) from error
    found = Web3(HTTPProvider(rpc))
    if not found.is_connected():
        raise ChainError(f"nothing answers JSON-RPC at {rpc}")
    return found


def address_of(text: str) -> str:
    """Return an address with its checksum; raises UserError."""
    try:
        from eth_utils import to_checksum_address
    except ImportError as error:
        raise UserError(NEEDED) from error
    try:
        return str(to_checksum_address(text))
    except ValueError as error:
        raise UserError(f"{text!r} is no address: {error}") from error


def settle_dir() -> Path:
    """Return where keys and vouchers are kept."""
    return data_dir() / "settle"


def create_account(password: str) -> str:
    """Make a key, kept encrypted; return its address; raises UserError."""
    try:
        from eth_account import Account
    except ImportError as error:
        raise UserError(NEEDED) from error
    path = _keystore()
    if path.exists():
        raise UserError(f"this machine has an account already: {path}")
    if not password:
        raise UserError("a key needs a password")
    made = Account.create()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_text(path, json.dumps(Account.encrypt(made.key, password, "scrypt", SCRYPT_N)))
    return str(made.address)


def open_account(password: str) -> "LocalAccount":
    """Return this machine's account; raises UserError."""
    try:
        from eth_account import Account
    except ImportError as error:
        raise UserError(NEEDED) from error
    path = _keystore()
    try:
        return Account.from_key(Account.decrypt(json.loads(path.read_text()), password))
    except FileNotFoundError:
        raise UserError("this machine has no account yet: p2pinfer settle account") from None
    except ValueError as error:
        raise UserError(f"the account {path} cannot be opened: {error}") from error


def newest_statement(statements: Iterable[Statement], server: PeerId) -> Statement:
    """Return the largest statement to a server; raises UserError."""
    found = [each for each in statements if each.server == server]
    if not found:
        raise UserError(f"nothing was stated to {server}: see p2pinfer status --ledger")
    return max(found, key=lambda each: each.amounts.worth)


def _keystore() -> Path:
    return settle_dir() / "account.json"


def _artefact() -> dict[str, Any]:
    """Return the compiled contract."""
    place = resources.files("p2pinfer.node") / "contracts" / "chequebook.json"
    found: dict[str, Any] = json.loads(place.read_text())
    return found


_TOKEN: Final = [
    {
        "type": "function",
        "name": "approve",
        "stateMutability": "nonpayable",
        "inputs": [{"name": "spender", "type": "address"}, {"name": "amount", "type": "uint256"}],
        "outputs": [{"name": "", "type": "bool"}],
    }
]
