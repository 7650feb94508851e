"""What a peer says of itself on standard output: who it is, what it serves, what others type."""

import json

from p2pinfer.cli.terminal import say
from p2pinfer.node.peer import Serving
from transports.interfaces import is_loopback

ONLY_HERE = (
    "only this machine can use it: no network, or --listen names nothing but its loopback address"
)


class JoinAnnouncer:
    """Prints everything once, and of later moves a line."""

    def __init__(self, reach: str, *, as_json: bool, fixed: bool, mdns: bool = False) -> None:
        """Prepare.

        Args:
            reach: the options that others need to reach the same swarm, besides a way in.
            as_json: print an object for each range, for programs.
            fixed: the layers were chosen by a person.
            mdns: others find this peer on the local network without an address.
        """
        self._reach, self._as_json, self._fixed, self._mdns = reach, as_json, fixed, mdns
        self._was_said = False

    def tell(self, serving: Serving) -> None:
        """Say what is served from now on."""
        layers = f"{serving.first}:{serving.end}"
        if self._as_json:
            ready = {
                "peer": serving.peer,
                "addresses": serving.addresses,
                "model": serving.model.id,
                "layers": layers,
            }
            print(json.dumps(ready), flush=True)
        elif self._was_said:
            say(f"serving layers {layers} from now on")
        else:
            self._print_all(serving)
        self._was_said = True

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
        others = ["another peer here" if is_local else "the next machine", "another one"]
        ranges = self._missing(serving, layers)
        lines = [(who, f"join{range_}") for who, range_ in zip(others, ranges, strict=False)]
        lines.append(("to chat, any machine", "chat"))
        way_in = self._way_in(serving)
        for number, (who, verb) in enumerate(lines):
            print(f"and {who} types" if number else f"{who} types")
            print(f"  p2pinfer {verb}{way_in}")
        print("ready; Ctrl-C to leave", flush=True)

    def _way_in(self, serving: Serving) -> str:
        """Return the options that lead others here."""
        if self._mdns:
            return f" --mdns{self._reach}"
        address = serving.addresses[0] if serving.addresses else "ADDRESS"
        return f" --bootstrap {address} --model {serving.model.id}{self._reach}"

    def _missing(self, serving: Serving, layers: int) -> list[str]:
        """Return how the next machines should choose their layers."""
        if not self._fixed:
            return [""]
        missing = [(1, serving.first), (serving.end, layers - 1)]
        return [f" --layers {first}:{end}" for first, end in missing if first < end]
