"""What a peer tells its owner: that others cannot dial it, or that its key is used twice."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from p2pinfer.node.swarm_connection import SwarmConnection
from transports.base import Reachability

HIDDEN = (
    "other peers cannot dial this one, and none of them relays for it, so it gets no sessions: open"
    " its TCP port {} in the firewall and pass it on in the router, or run p2pinfer relay on a"
    " machine that others can dial"
)

UNREACHED = (
    "other peers cannot dial this one, so it gets no sessions: see that {} leads to this machine,"
    " through the router and the firewall"
)

TWIN = (
    "another machine runs with this peer's identity, so the swarm takes the two for one, and"
    " sessions fail: stop one of them, and start it with its own key (--identity FILE); copying a"
    " home directory copies the key"
)

SELF = (
    "{} has this peer's own identity: if that is another machine, one's home directory was copied"
    " from the other, and one of them needs its own key (--identity FILE)"
)


def notify_owner(
    swarm: SwarmConnection, say: Callable[[str], None], announced: Sequence[str] = ()
) -> None:
    """Say when others cannot dial this peer, or can again, and when another one uses its key."""
    transport = swarm.transport
    ports = dict.fromkeys(re.findall(r"/tcp/(\d+)", " ".join(transport.addresses)))
    advice = HIDDEN.format(" or ".join(ports))
    if announced:
        advice = UNREACHED.format(" or ".join(announced))
    last = ""

    def on_hidden(hidden: bool) -> None:
        nonlocal last
        text = "others can dial this peer now"
        if hidden:
            router = transport.port_mapping
            text = f"{advice}; {router}" if router else advice
        is_public = transport.reachability is Reachability.PUBLIC
        if text != last and (
            hidden or is_public or transport.was_dialled
        ):  # it stops hiding now and then, just to try
            say(text)
            last = text

    swarm.directory.advertiser.on_hidden = on_hidden
    swarm.directory.advertiser.on_twin = partial(say, TWIN)
