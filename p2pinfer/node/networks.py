"""Networks of founders on this machine: its member key, who founded them, and who is a member.

    networks/member.key        this machine's member key, the same for all networks
    networks/NAME.network      the founding, this member's grants, and where others are: secret
    networks/NAME.members      on a founder's machine: who was invited, and who was expelled

Several processes share these files: each reads them again when they have changed.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import asdict, evolve, frozen

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.places import data_dir
from transports.base import NETWORK_NAME
from transports.envelope import EnvelopeKey
from transports.identity import Identity, load_identity, peer_of, public_key
from transports.membership import (
    EPOCH_S,
    Clock,
    Founding,
    Grant,
    MemberKey,
    NotAMemberError,
    ProvenMember,
    check,
    grant,
)

FILE_BYTES_MAX: Final = 1 << 20
"""Of a network's file: a founding, some addresses, and grants of a few epochs."""

EPOCHS_KEPT: Final = 3
"""Grants of older epochs are dropped: the last one still shows a founder who comes back."""

PROVEN_MAX: Final = 4096
"""Peers whose proof is remembered while they may be connected."""

MEMBERS_MAX: Final = 10_000
"""In a founder's register."""

_FORMAT: Final = "p2pinfer network 1"


def wall_clock_s() -> float:
    """Return seconds since 1970."""
    return time.time_ns() / 1e9


@frozen
class NetworkFile:
    """What a member's machine keeps of a network."""

    founding: Founding
    grants: tuple[Grant, ...] = ()
    addresses: tuple[str, ...] = ()
    """Where peers of it were when the invitation was made."""

    def encode(self) -> str:
        """Return the file's text."""
        founding = asdict(self.founding)
        founding |= {"key": self.founding.key.hex()}
        founding["founders"] = [each.hex() for each in self.founding.founders]
        grants = [
            [each.epoch, each.founder, each.shown.hex(), each.secret.hex()] for each in self.grants
        ]
        said = {"format": _FORMAT, **founding, "grants": grants, "addresses": [*self.addresses]}
        return json.dumps(said, indent=1)

    @classmethod
    def decode(cls, text: str | bytes) -> "NetworkFile":
        """Read a file's text, or an invitation's; raises ValueError."""
        try:
            said = json.loads(text)
            if said["format"] != _FORMAT or not NETWORK_NAME.fullmatch(said["network"]):
                raise ValueError("it is of another kind, or release")
            founders = tuple(bytes.fromhex(each) for each in said["founders"])
            key, epoch_s = bytes.fromhex(said["key"]), int(said["epoch_s"])
            founding = Founding(said["network"], founders, int(said["threshold"]), key, epoch_s)
            grants = tuple(
                Grant(int(epoch), int(founder), bytes.fromhex(shown), bytes.fromhex(secret))
                for epoch, founder, shown, secret in said["grants"]
            )
            return cls(founding, grants, tuple(map(str, said["addresses"])))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a part is missing, or damaged: {error}") from error

    def with_grants(self, more: Iterable[Grant], member: bytes) -> "NetworkFile":
        """Return it with other grants that hold for a member, without those of long ago."""
        found = {(each.epoch, each.founder): each for each in self.grants}
        found |= {(g.epoch, g.founder): g for g in more if g.holds(self.founding, member)}
        newest = sorted({epoch for epoch, _ in found})[-EPOCHS_KEPT:]
        kept = (each for key, each in sorted(found.items()) if key[0] in newest)
        return evolve(self, grants=tuple(kept))


@frozen
class Invited:
    """A member in a founder's register."""

    name: str
    """What the founder calls it."""
    since_s: int
    is_expelled: bool = False


class Register:
    """Who was invited by a founder on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._known: dict[PeerId, Invited] = {}

    def read(self) -> Mapping[PeerId, Invited]:
        """Return the members, and who was expelled; raises UserError."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return {}
        if self._stamp != (found.st_mtime_ns, found.st_size):
            try:
                said = json.loads(self._path.read_text())
                self._known = {PeerId(each): Invited(**more) for each, more in said.items()}
            except (OSError, ValueError, TypeError, AttributeError) as error:
                raise UserError(
                    f"the register of members {self._path} cannot be read: {error}; put it back"
                    " from a copy"
                ) from error
            self._stamp = found.st_mtime_ns, found.st_size
        return self._known

    def put(self, member: PeerId, invited: Invited) -> None:
        """Write a member down, or that it was expelled; raises UserError."""
        known = {**self.read(), member: invited}
        if len(known) > MEMBERS_MAX:
            raise UserError(f"a network has {MEMBERS_MAX:,} members at most")
        replace_text(self._path, json.dumps({each: asdict(one) for each, one in known.items()}))


class Membership:
    """This machine's part in a network of founders, while a process runs.

    Args:
        path: of the network's file.
        member: this machine's member key.
        clock_s: seconds since 1970.
    """

    def __init__(self, path: Path, member: Identity, clock_s: Clock = wall_clock_s) -> None:
        self._path, self._member, self._clock_s = path, member, clock_s
        self._name = public_key(member.peer_id)
        self._stamp: tuple[int, int] | None = None
        self._file = self._read()
        self._register = Register(register_path(path))
        self.proven: dict[PeerId, ProvenMember] = {}
        """Who has proved to be a member, by the peer id of its connections, the latest last."""

    @property
    def founding(self) -> Founding:
        """The network's."""
        return self._file.founding

    @property
    def member(self) -> PeerId:
        """This machine's name as a member."""
        return self._member.peer_id

    @property
    def is_founder(self) -> bool:
        """Whether this machine may sign for members."""
        return self._name in self.founding.founders

    @property
    def key_now(self) -> MemberKey | None:
        """This member's key of the newest epoch that is admitted now, or else of the last one."""
        self._look()
        epochs = self.founding.epochs_admitted(self._clock_s())
        enough = [each for each in self._epochs() if each < epochs.stop]
        if not enough:
            return None
        grants = [each for each in self._file.grants if each.epoch == enough[-1]]
        return MemberKey.of(self._member, self.founding, grants)

    @property
    def is_admitted(self) -> bool:
        """Whether others admit this machine now."""
        key = self.key_now
        return key is not None and key.epoch in self.founding.epochs_admitted(self._clock_s())

    @property
    def epoch_now(self) -> int:
        """The number of the epoch."""
        return self.founding.epoch_at(self._clock_s())

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where peers of the network were when this machine was invited."""
        return self._file.addresses

    def prove(self, me: PeerId, other: PeerId, binding: bytes) -> bytes:
        """Return a proof of membership; raises NotAMemberError if there is none to show."""
        try:
            key = self.key_now
        except UserError as error:  # a file was damaged while this runs
            raise NotAMemberError(str(error)) from error
        if key:
            return key.prove(me, other, binding, secrets.token_bytes(64))
        raise NotAMemberError(f"this machine is no member of {self.founding.network}")

    def admit(self, proof: bytes, other: PeerId, me: PeerId, binding: bytes) -> None:
        """Take another peer's proof.

        A founder takes one of an epoch that is over, too, to renew it: its owner was away.

        Raises:
            NotAMemberError: it does not hold, its epoch is not this one, or its maker was expelled.
        """
        found = check(self.founding, proof, other, me, binding)
        epochs = self.founding.epochs_admitted(self._clock_s())
        try:
            invited = self._invited().get(peer_of(found.key))
        except UserError as error:  # nobody is let in by a register that cannot be read
            raise NotAMemberError(str(error)) from error
        if invited and invited.is_expelled:
            raise NotAMemberError("it was expelled")
        if found.epoch not in epochs and not (invited and found.epoch < epochs.start):
            raise NotAMemberError("its membership has ended: a founder can renew it")
        self.proven.pop(other, None)
        self.proven[other] = found
        if len(self.proven) > PROVEN_MAX:
            del self.proven[next(iter(self.proven))]

    def lapsed(self) -> list[PeerId]:
        """Return the peers that were admitted, and would not be now."""
        epochs = self.founding.epochs_admitted(self._clock_s())
        gone = {each for each, one in self._invited().items() if one.is_expelled}
        return [
            peer
            for peer, each in self.proven.items()
            if each.epoch < epochs.start or peer_of(each.key) in gone
        ]

    def forget(self, peer: PeerId) -> None:
        """Forget a peer's proof: it is connected no more."""
        self.proven.pop(peer, None)

    def behind(self) -> list[PeerId]:
        """Return the peers that have not shown, nor were shown, a proof of this machine's epoch."""
        key = self.key_now
        return [peer for peer, each in self.proven.items() if key and each.epoch < key.epoch]

    def lacks(self) -> list[int]:
        """Return the epochs, of this one and the next, that founders have yet to sign for."""
        self._look()
        now = self.epoch_now
        return [each for each in (now, now + 1) if each not in self._epochs()]

    def sign_for(self, member: bytes, epoch: int) -> Grant | None:
        """Return a grant for a member, as a founder; None where it is not to have one."""
        now = self.epoch_now
        invited = self._invited().get(peer_of(member))
        is_own = member == self._name
        if not self.is_founder or not now <= epoch <= now + 1:
            return None
        if not is_own and (invited is None or invited.is_expelled):
            return None
        return grant(self._member, self.founding, member, epoch)

    def take(self, grants: Iterable[Grant]) -> None:
        """Keep grants that hold for this machine; raises UserError."""
        self._look()
        new = self._file.with_grants(grants, self._name)
        if new != self._file:
            write_network(self._path, new)
            self._file = new

    def renew_own(self) -> None:
        """As a founder, sign for this machine itself; raises UserError."""
        if self.is_founder:
            made = (self.sign_for(self._name, epoch) for epoch in self.lacks())
            self.take(each for each in made if each)

    @property
    def identity(self) -> Identity:
        """The member key, which signs envelopes."""
        return self._member

    def _invited(self) -> Mapping[PeerId, Invited]:
        return self._register.read() if self.is_founder else {}

    def _epochs(self) -> list[int]:
        """Return the epochs that enough founders have signed for, in order."""
        counts: dict[int, int] = {}
        for each in self._file.grants:
            counts[each.epoch] = counts.get(each.epoch, 0) + 1
        return sorted(e for e, count in counts.items() if count >= self.founding.threshold)

    def _look(self) -> None:
        """Read the file again if another process has changed it."""
        try:
            found = self._path.stat()
        except OSError:
            return
        if self._stamp != (found.st_mtime_ns, found.st_size):
            self._file = self._read()

    def _read(self) -> NetworkFile:
        found = read_network(self._path)
        stat = self._path.stat()
        self._stamp = stat.st_mtime_ns, stat.st_size
        return found


def networks_dir() -> Path:
    """Return the folder of this machine's networks, which only its owner can read."""
    path = data_dir() / "networks"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def network_path(name: str) -> Path:
    """Return where a network's file is kept; raises UserError."""
    if not NETWORK_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a network: use up to 64 of a-z, 0-9, dot, dash, underscore"
        )
    return networks_dir() / f"{name}.network"


def register_path(network: Path) -> Path:
    """Return where a founder keeps who is a member of the network in a file."""
    return network.with_suffix(".members")


def member_key() -> Identity:
    """Return this machine's member key, which is made when it is first needed; raises UserError."""
    return load_identity(networks_dir() / "member.key")


def sealing_key(member: Identity) -> EnvelopeKey:
    """Return the key with which invitations are sealed for a member."""
    return EnvelopeKey(member.seed)


def is_network_file(path: Path) -> bool:
    """Whether a file is of a network of founders, and no key that all share."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False


def read_network(path: Path) -> NetworkFile:
    """Read a network's file; raises UserError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ValueError("it is too long")
        return NetworkFile.decode(data)
    except FileNotFoundError:
        raise UserError(
            f"there is no network's file {path}: p2pinfer network create NAME makes a network, and"
            " p2pinfer network join enters one"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"the network's file {path} cannot be used: {error}; ask a founder to invite this"
            " machine again"
        ) from error


def write_network(path: Path, found: NetworkFile) -> None:
    """Write a network's file, whole, for its owner alone; raises OSError."""
    replace_text(path, found.encode())


def found_network(
    name: str, others: Sequence[PeerId], threshold: int, epoch_s: int = EPOCH_S
) -> Membership:
    """Make a network that this machine founds, alone or with others; raises UserError."""
    path, me = network_path(name), member_key()
    if path.exists():
        raise UserError(f"this machine has a network {name} already ({path}): choose another name")
    founders = sorted({public_key(each) for each in (me.peer_id, *others)})
    try:
        founding = Founding(name, tuple(founders), threshold, secrets.token_bytes(32), epoch_s)
    except ValueError as error:
        raise UserError(f"such a network cannot be: {error}") from error
    write_network(path, NetworkFile(founding))
    made = Membership(path, me)
    made.renew_own()
    return made


def open_network(path: Path, clock_s: Callable[[], float] = wall_clock_s) -> Membership:
    """Return this machine's part in the network of a file.

    Raises:
        UserError: it cannot be read, or this machine was never a member.
    """
    found = Membership(path, member_key(), clock_s)
    found.renew_own()
    if found.key_now is None:
        raise UserError(
            f"this machine is no member of {found.founding.network} yet: {missing(found)}"
        )
    return found


def expel_member(part: Membership, named: str) -> PeerId:
    """Sign no more for a member; return its key.

    Raises:
        UserError: this machine is no founder, or nobody or several are called so.
    """
    if not part.is_founder:
        raise UserError(f"this machine is no founder of {part.founding.network}")
    register = Register(register_path_of(part))
    known = register.read()
    fits = [
        peer
        for peer, each in known.items()
        if named == each.name or peer.endswith(named.strip("…"))
    ]
    if len(fits) != 1 and PeerId(named) not in known:
        found = "several members are" if fits else "no member is"
        raise UserError(f"{found} called {named!r}: see p2pinfer network members")
    (member,) = fits if len(fits) == 1 else (PeerId(named),)
    register.put(member, evolve(known[member], is_expelled=True))
    return member


def missing(found: Membership) -> str:
    """Say what a machine lacks to be a member."""
    need = found.founding.threshold
    founders = "a founder" if need == 1 else f"{need} founders"
    return f"{founders} must sign for it (p2pinfer network join prints what to send them)"


def as_said(found: Membership) -> dict[str, Any]:
    """Return what ``network members --json`` says about a network."""
    founding = found.founding
    return {
        "network": founding.network,
        "member": found.member,
        "is_founder": found.is_founder,
        "is_admitted": found.is_admitted,
        "founders": [peer_of(each) for each in founding.founders],
        "threshold": founding.threshold,
        "epoch_s": founding.epoch_s,
        "members": {
            peer: asdict(each) for peer, each in Register(register_path_of(found)).read().items()
        },
    }


def register_path_of(found: Membership) -> Path:
    """Return a founder's register."""
    return register_path(network_path(found.founding.network))
