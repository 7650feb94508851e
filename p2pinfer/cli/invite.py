"""``p2pinfer invite``: one line that brings others into the swarm."""

import json
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

from p2pinfer.cli.options import AsJson, NetworkKey, option
from p2pinfer.core.errors import UserError
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.node.invitation import Invitation

MARGIN_MODULES = 2
"""Around a QR code. Four are asked for, and phones are content with less on a dark terminal."""


def invite(
    *,
    network: Annotated[
        str | None,
        option(
            "network",
            "Swarm name. If omitted: that of the peer running here, or else main.",
        ),
    ] = None,
    network_key: NetworkKey = None,
    once: Annotated[
        bool,
        option(
            "once",
            "Into a private network, for one guest, who gets the key from the peer running here.",
            negative="",
        ),
    ] = False,
    revoke: Annotated[
        str | None,
        option(
            "revoke",
            "Instead, take a single-use invitation back, or all that this machine has given away.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print an invitation."""
    from p2pinfer.node.invitation import link_of
    from p2pinfer.node.inviting import invitation_here
    from transports.interfaces import is_loopback
    from transports.secret import read_network_key

    if revoke is not None:
        count = take_back(revoke)
        print(json.dumps({"revoked": count}) if as_json else f"revoked     {count}")
        return
    key = read_network_key(network_key) if network_key else None
    invitation = invitation_here(network, key, once=once)
    link = link_of(invitation)
    if as_json:
        print(json.dumps({"link": link, **described(invitation)}))
        return
    print(link)
    if sys.stdout.isatty():
        show_code(link)
    private = "; it holds the key, so send it to nobody else" if invitation.key else ""
    if once:
        private = "; for one guest, within a week, while a peer runs here; see: invite --revoke"
    note(f"into the network {invitation.network}, for: p2pinfer join, chat or serve{private}")
    if all(map(is_loopback, invitation.addresses)):
        note("only this machine can use it: its peers listen on loopback addresses")


def take_back(which: str) -> int:
    """Revoke a single-use invitation, or ``all``; return how many.

    Raises:
        UserError: it is none that this machine could take back.
    """
    from p2pinfer.node.guest_tokens import open_tokens, revoke
    from p2pinfer.node.invitation import read_link
    from transports.secret import token_id

    if which == "all":
        return sum(map(revoke, list(open_tokens())))
    token = read_link(which).token
    if token is None:
        raise UserError(
            "only single-use invitations can be taken back: who has this one knows all that it says"
        )
    if not revoke(token_id(token)):
        raise UserError(
            "this machine has no such invitation open: it was used, revoked or has expired, or"
            " another machine made it"
        )
    return 1


def described(invitation: "Invitation") -> dict[str, object]:
    """Return what ``--json`` prints about an invitation."""
    return {
        "network": invitation.network,
        "private": bool(invitation.key or invitation.token),
        "once": invitation.token is not None,
        "model": invitation.model,
        "addresses": list(invitation.addresses),
    }


def show_code(link: str) -> None:
    """Print a QR code, if the terminal is wide enough for it."""
    import segno

    code = segno.make(link, mode="alphanumeric", error="l", micro=False)
    if code.symbol_size(border=MARGIN_MODULES)[0] <= shutil.get_terminal_size().columns:
        code.terminal(border=MARGIN_MODULES, compact=True)
    else:
        note("this terminal is too narrow for a QR code")
