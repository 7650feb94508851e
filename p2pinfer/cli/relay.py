"""``p2pinfer relay``: let peers behind routers be called through this machine."""

import json
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from p2pinfer.cli.join import how_to_reach
from p2pinfer.cli.options import (
    REACH,
    Announce,
    AsJson,
    Bootstrap,
    Identity,
    Listen,
    MapPort,
    Network,
    ReachFlags,
    RelayMbit,
)
from p2pinfer.cli.running import cancel_at_end_of_input, run_task
from p2pinfer.cli.sizes import check_range
from p2pinfer.core import errors


def relay(
    *,
    relay_mbit: RelayMbit = 16.0,
    map_port: MapPort = True,
    listen: Listen = (),
    announce: Announce = (),
    bootstrap: Bootstrap = (),
    network: Network = "main",
    identity: Identity = None,
    as_json: AsJson = False,
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
    reach: ReachFlags = REACH,
) -> None:
    """Relay until interrupted."""
    import trio

    from p2pinfer.cli.terminal import say
    from p2pinfer.core.ids import PeerId
    from p2pinfer.node.relay_peer import RelayOptions, run_relay

    check_range("relay-mbit", relay_mbit, 0.1)
    ways_in = reach.ways_in(bootstrap)
    way = reach.of(network, (*listen, *ways_in))
    way = replace(way, relay_mbit=relay_mbit, maps_port=map_port)
    options = RelayOptions(listen, announce, ways_in, way, identity)

    def ready(peer: PeerId, addresses: tuple[str, ...]) -> None:
        if as_json:
            print(json.dumps({"peer": peer, "addresses": addresses}), flush=True)
            return
        print(f"peer id     {peer}")
        for address in addresses:
            print(f"address     {address}")
        way_in = addresses[0] if addresses else "ADDRESS"
        print("on machines behind routers, run:")
        print(f"  p2pinfer join --bootstrap {way_in}{how_to_reach(network, reach)}")
        print("ready; Ctrl-C to leave", flush=True)

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            if until_stdin_closes:
                nursery.start_soon(cancel_at_end_of_input, nursery.cancel_scope)
            await run_relay(options, ready, say)
            nursery.cancel_scope.cancel()

    run_task(run, interrupted=errors.EXIT_DONE)
