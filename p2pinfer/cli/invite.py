"""``p2pinfer invite``: one line that brings others into the swarm."""

import json
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

from p2pinfer.cli.options import AsJson, NetworkKey, option
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
    as_json: AsJson = False,
) -> None:
    """Print an invitation."""
    from p2pinfer.node.invitation import link_of
    from p2pinfer.node.inviting import invitation_here
    from transports.interfaces import is_loopback
    from transports.secret import read_network_key

    key = read_network_key(network_key) if network_key else None
    invitation = invitation_here(network, key)
    link = link_of(invitation)
    if as_json:
        print(json.dumps({"link": link, **described(invitation)}))
        return
    print(link)
    if sys.stdout.isatty():
        show_code(link)
    private = "; whoever has it can enter, so send it to nobody else" if invitation.key else ""
    note(f"into the network {invitation.network}, for: p2pinfer join, chat or serve{private}")
    if all(map(is_loopback, invitation.addresses)):
        note("only this machine can use it: its peers listen on loopback addresses")


def described(invitation: "Invitation") -> dict[str, object]:
    """Return what ``--json`` prints about an invitation."""
    return {
        "network": invitation.network,
        "private": invitation.key is not None,
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
