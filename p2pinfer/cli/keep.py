"""``p2pinfer keep``: lend disk space to a model, so that it outlives those who serve it."""

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from p2pinfer.cli.join import how_to_reach
from p2pinfer.cli.options import (
    REACH,
    Announce,
    AsJson,
    Bootstrap,
    Identity,
    Listen,
    Network,
    ReachFlags,
    option,
)
from p2pinfer.cli.running import cancel_at_end_of_input, run_task
from p2pinfer.cli.space import parse_space
from p2pinfer.core import errors

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.core.ids import PeerId
    from p2pinfer.core.manifest import Manifest
    from peers.parts.keeper import KeptState

Space = Annotated[
    str,
    option("space", "Disk space to lend, such as 20GiB; what is rebuilt may need a little more."),
]


def keep(
    model: str,
    /,
    *,
    space: Space,
    code: Annotated[
        str,
        option(
            "code",
            "Data and parity shares of a stripe, where this peer is the first to keep the model:"
            " any 8 of the 16 shares of 8+8 suffice.",
        ),
    ] = "8+8",
    listen: Listen = (),
    announce: Announce = (),
    bootstrap: Bootstrap = (),
    network: Network = "main",
    identity: Identity = None,
    as_json: AsJson = False,
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
    reach: ReachFlags = REACH,
) -> None:
    """Keep a model until interrupted.

    Parameters
    ----------
    model: str
        GGUF file, model id, the beginning of one that is here, or 'default'.
    """
    import trio

    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.cli.terminal import doing, say
    from p2pinfer.node.keeping import KeepHooks, KeepOptions, parse_code, run_keeper
    from p2pinfer.node.model_supply import open_store

    k, m = parse_code(code)
    space_bytes = parse_space("space", space)
    store = open_store()
    ways_in = reach.ways_in(bootstrap)
    options = KeepOptions(
        name_model(model, store),
        space_bytes,
        k,
        m,
        listen,
        announce,
        ways_in,
        reach.of(network, (*listen, *ways_in)),
        identity,
    )
    announcer = _Announcer(how_to_reach(network, reach), as_json=as_json)

    async def run() -> None:
        async with doing("Joining the swarm …", at_once=as_json) as done:

            def ready(peer: "PeerId", addresses: tuple[str, ...], manifest: "Manifest") -> None:
                done()
                announcer.ready(peer, addresses, manifest)

            async with trio.open_nursery() as nursery:
                if until_stdin_closes:
                    nursery.start_soon(cancel_at_end_of_input, nursery.cancel_scope)
                await run_keeper(options, store, KeepHooks(ready, announcer.watch, done.tell, say))
                nursery.cancel_scope.cancel()

    run_task(run, interrupted=errors.EXIT_DONE)


class _Announcer:
    """Prints where a keeper is, and what it keeps whenever that changes."""

    def __init__(self, reached: str, *, as_json: bool) -> None:
        self._reached, self._as_json, self._last = reached, as_json, ""

    def ready(self, peer: "PeerId", addresses: tuple[str, ...], manifest: "Manifest") -> None:
        """Print where it is, and what others are to type."""
        if self._as_json:
            told = {"peer": peer, "addresses": addresses, "model": manifest.id}
            print(json.dumps(told), flush=True)
            return
        print(f"peer id     {peer}")
        for address in addresses:
            print(f"address     {address}")
        way_in = f"--bootstrap {addresses[0] if addresses else 'ADDRESS'}{self._reached}"
        print("on machines that are to keep it too, run:")
        print(f"  p2pinfer keep {manifest.id} --space 20GiB {way_in}")
        print("ready; Ctrl-C to leave", flush=True)

    def watch(self, kept: "KeptState") -> None:
        """Print what is kept, if that is news."""
        words = _words(kept)
        if words != self._last:
            self._last = words
            print(json.dumps(_facts(kept)) if self._as_json else words, flush=True)


def _words(kept: "KeptState") -> str:
    """Say what is kept here, and how safe the model is."""
    from p2pinfer.cli.terminal import count
    from p2pinfer.core.model_names import readable_name
    from p2pinfer.engine.store.disk import size_text
    from scheduler.keeping import in_words

    space = f"{size_text(kept.kept_bytes)} of {size_text(kept.space_bytes)}"
    safe = in_words(readable_name(kept.name), kept.may_lose, kept.keepers)
    return f"{count(kept.rows, 'row')} kept here, {space}; {safe}"


def _facts(kept: "KeptState") -> dict[str, object]:
    import attrs

    return attrs.asdict(kept)
