"""What a new peer prints: its id, what it serves, and the commands for other machines."""

import json

from p2pinfer.cli.options import INVITED
from p2pinfer.cli.terminal import say
from p2pinfer.core.ids import PeerId
from p2pinfer.node.peer import Serving
from transports.interfaces import is_loopback

ONLY_HERE = (
    "only this machine can reach it: there is no network, or --listen names only loopback addresses"
)


class JoinAnnouncer:
    """Prints everything once, and one line for each later move."""

    def __init__(
        self,
        reach: str,
        *,
        as_json: bool,
        fixed: bool,
        keep: int = 1,
        mdns: bool = False,
        models: int = 1,
    ) -> None:
        """Prepare.

        Args:
            reach: the options that others need to reach the same swarm, besides an address; or an
                invitation, which is enough.
            as_json: print one JSON object for each range.
            fixed: the layers were chosen by a person.
            keep: layers at each end that those who ask in this swarm run themselves.
            mdns: others can find this peer on the local network without an address.
            models: how many are to be served here, each by a peer of its own.
        """
        self._reach, self._as_json, self._fixed, self._mdns = reach, as_json, fixed, mdns
        self._keep = keep
        self._is_invitation = reach.strip().upper().startswith(INVITED)
        self._models, self._said = models, set[PeerId]()

    def tell(self, serving: Serving) -> bool:
        """Print what is served from now on; return whether all models are."""
        layers = f"{serving.first}:{serving.end}"
        if self._as_json:
            ready = {
                "peer": serving.peer,
                "addresses": serving.addresses,
                "model": serving.model.id,
                "layers": layers,
            }
            print(json.dumps(ready), flush=True)
        elif serving.peer in self._said:
            of = f" of {serving.model.info.name}" if self._models > 1 else ""
            say(f"now serving layers {layers}{of}")
        else:
            self._print_all(serving)
        self._said.add(serving.peer)
        return len(self._said) >= self._models

    def _print_all(self, serving: Serving) -> None:
        model, layers = serving.model, serving.model.info.layers
        print(f"peer id     {serving.peer}")
        for address in serving.addresses:
            print(f"address     {address}")
        license_ = model.manifest.license
        licence = f"{license_} licence" if license_ else "licence not stated"
        print(f"model       {model.info.name}, {licence}")
        room = "" if self._fixed else f"; memory has room for {serving.layers_max} layers"
        counted = f"{serving.first} to {serving.end - 1}, counted from 0"
        print(f"layers      {serving.first}:{serving.end} of {layers} ({counted}){room}")
        is_local = all(map(is_loopback, serving.addresses))
        if is_local:
            print(ONLY_HERE)
        places = ["for another peer here" if is_local else "on the next machine", "on another one"]
        ranges = self._missing(serving, layers)
        lines = [(where, f"join{range_}") for where, range_ in zip(places, ranges, strict=False)]
        lines.append(("to chat, on any machine", "chat"))
        is_found = self._mdns and not is_local and not self._is_invitation
        near = " of this local network" if is_found else ""
        way_in = self._reach if is_found or self._is_invitation else self._way_in(serving)
        kept = "" if self._keep == 1 else f" --keep-layers {self._keep}"
        for where, verb in lines:
            print(f"{where}{near}, run:")
            print(f"  p2pinfer {verb}{way_in}{kept}")
        if is_found:
            print("for machines elsewhere, one line that says all:")
            print("  p2pinfer invite")
        left = self._models - len(self._said) - 1
        more = f"{left} more to come; " if left else ""
        print(f"ready; {more}Ctrl-C to leave", flush=True)

    def _way_in(self, serving: Serving) -> str:
        """Return the options with which others reach this peer."""
        address = serving.addresses[0] if serving.addresses else "ADDRESS"
        return f" --bootstrap {address} --model {serving.model.id}{self._reach}"

    def _missing(self, serving: Serving, layers: int) -> list[str]:
        """Return the --layers option of each further machine that is needed."""
        if not self._fixed:
            return [""]
        missing = [(self._keep, serving.first), (serving.end, layers - self._keep)]
        return [f" --layers {first}:{end}" for first, end in missing if first < end]
