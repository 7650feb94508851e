"""``p2pinfer network``: networks whose founders say who is a member, or that share one key."""

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
    from p2pinfer.node.networks import Membership

app = App(name="network", help_format="plaintext", group_parameters=OPTIONS)

Name = Annotated[
    str | None,
    option("network", "Its name. If omitted: the only network of founders on this machine."),
]


@app.command
def create(
    name: str,
    /,
    *,
    founder: Annotated[
        tuple[str, ...],
        option("founder", "Member keys of other machines that found it, too."),
    ] = (),
    threshold: Annotated[int, option("threshold", "How many founders must sign for a member.")] = 1,
    days: Annotated[
        float,
        option(
            "days",
            "Within how many days an expelled member is shut out. Founders may be away for half of"
            " that.",
        ),
    ] = 7.0,
    as_json: AsJson = False,
) -> None:
    """Found a network; prints the file that --network-key takes.

    Parameters
    ----------
    name: str
        The network's name.
    """
    from p2pinfer.node.networks import found_network, network_path

    others = [read_member(each) for each in founder]
    made = found_network(name, others, threshold, round(days * 86_400 / 2))
    path = network_path(name)
    if as_json:
        print(json.dumps({"network": name, "file": str(path), "member": made.member}))
        return
    print(path)
    note(f"p2pinfer join --network-key {path} lends this machine to it, and renews its members")
    note("others run p2pinfer network join, and send you what that prints")
    if made.key_now is None:
        note(f"{threshold} founders must sign for each member, for this machine as well")


@app.command
def key(file: Path, /) -> None:
    """Create the key of a private network that all its members share; it can expel nobody.

    Parameters
    ----------
    file: Path
        File to write; every peer of the network needs a copy.
    """
    from transports.secret import create_secret

    if not create_secret(file):
        raise UserError(f"{file} already exists: name another file")
    print(file)


@app.command
def invite(
    request: str,
    /,
    *,
    network: Name = None,
    name: Annotated[
        str | None, option("as", "What to call the new member; only you see it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """As a founder, sign for a member; prints one line for it, which nobody else can read.

    Parameters
    ----------
    request: str
        What p2pinfer network join printed there, a file with it, or - for standard input.
    """
    from p2pinfer.node.network_invitations import invite_member, read_request

    part = find(network)
    asked = read_request(read_text(request))
    line = invite_member(part, asked, name or "")
    if as_json:
        print(json.dumps({"member": asked.member, "invitation": line}))
        return
    print(line)
    note(
        f"into {part.founding.network}, for {asked.member} alone: p2pinfer network join LINE there"
    )
    need = part.founding.threshold
    if need > 1:
        note(f"{need} founders must each send it such a line")


@app.command
def join(invitation: str | None = None, /, *, as_json: AsJson = False) -> None:
    """Enter a network: without an invitation, print what a founder needs for one.

    Parameters
    ----------
    invitation: str
        What a founder sent, a file with it, or - for standard input.
    """
    from p2pinfer.node.network_invitations import accept, write_request
    from p2pinfer.node.networks import member_key, missing, network_path

    if invitation is None:
        member = member_key()
        line = write_request(member)
        if as_json:
            print(json.dumps({"member": member.peer_id, "request": line}))
            return
        print(line)
        note(f"send it to a founder; this machine is {member.peer_id}")
        return
    part = accept(read_text(invitation))
    path = network_path(part.founding.network)
    is_in = part.key_now is not None
    if as_json:
        print(json.dumps({"network": part.founding.network, "file": str(path), "member": is_in}))
        return
    print(path)
    if is_in:
        note("for --network-key of join, chat and serve; peers here stay members by themselves")
    else:
        note(f"one of {part.founding.threshold} founders has signed: {missing(part)}")


@app.command
def expel(member: str, /, *, network: Name = None, as_json: AsJson = False) -> None:
    """As a founder, stop signing for a member: it is shut out once its last signature expires.

    Parameters
    ----------
    member: str
        Its key, the end of it, or what you called it.
    """
    import time

    from p2pinfer.node.networks import expel_member

    part = find(network)
    expelled = expel_member(part, member)
    ends_s = (part.epoch_now + 2) * part.founding.epoch_s  # the next one may be granted already
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(ends_s))
    if as_json:
        print(json.dumps({"member": expelled, "until": ends_s}))
        return
    print(f"{expelled} is a member until {until} at the latest")
    spare = len(part.founding.founders) - part.founding.threshold
    if spare:
        note(f"{spare} more founders must expel it as well: the others could still sign for it")
    note("peers that run here shut it out at once")


@app.command
def members(*, network: Name = None, as_json: AsJson = False) -> None:
    """Show a network's founders, and on a founder's machine its members."""
    from p2pinfer.node.networks import as_said

    said = as_said(find(network))
    if as_json:
        print(json.dumps(said))
        return
    state = "admitted" if said["is_admitted"] else "not admitted now"
    print(
        f"network  {said['network']}, {said['threshold']} of {len(said['founders'])} founders sign"
    )
    for each in said["founders"]:
        print(f"founder  {each}{' (this machine)' if each == said['member'] else ''}")
    if not said["is_founder"]:
        print(f"member   {said['member']} (this machine, {state})")
        return
    for peer, each in said["members"].items():
        print(
            f"{'expelled' if each['is_expelled'] else 'member':<8} {peer} {each['name']}".rstrip()
        )


def find(name: str | None) -> "Membership":
    """Return this machine's part in a network; raises UserError."""
    from p2pinfer.node.networks import Membership, member_key, network_path, networks_dir

    if name is None:
        known = sorted(networks_dir().glob("*.network"))
        if len(known) != 1:
            names = ", ".join(each.stem for each in known)
            raise UserError(
                f"choose one of this machine's networks by --network: {names}"
                if known
                else "this machine is in no network of founders: p2pinfer network create NAME makes"
                " one, p2pinfer network join enters one"
            )
        return Membership(known[0], member_key())
    return Membership(network_path(name), member_key())


def read_member(text: str) -> PeerId:
    """Return a member's key that a person typed; raises UserError."""
    from transports.identity import public_key

    try:
        public_key(PeerId(text))
    except ValueError as error:
        raise UserError(f"{text!r} is no member key: {error}") from error
    return PeerId(text)


def read_text(word: str) -> str:
    """Return a line that was typed, is in a file, or comes on standard input; raises UserError."""
    if word == "-":
        return sys.stdin.read(1 << 20)
    if ":" in word:
        return word
    try:
        return Path(word).expanduser().read_text()[: 1 << 20]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{word[:100]} is no such line, and no file with one: {why}") from error
