"""What a peer says of itself on standard output: who it is, what it serves, what others type."""

import json

from p2pinfer.cli.terminal import say
from p2pinfer.node.peer import Serving


class JoinAnnouncer:
    """Prints everything once, and of later moves a line."""

    def __init__(self, reach: str, *, as_json: bool, fixed: bool) -> None:
        self._reach, self._as_json, self._fixed = reach, as_json, fixed
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
        more = f" --model {model.id}{self._reach}"
        address = serving.addresses[0] if serving.addresses else "ADDRESS"  # loopback comes last
        for number, range_ in enumerate(self._missing(serving, layers)):
            print("and another one" if number else "the next machine types")
            print(f"  p2pinfer join{range_} --bootstrap {address}{more}")
        print("and whoever wants to chat")
        print(f"  p2pinfer chat --bootstrap {address}{more}")
        print("ready; Ctrl-C to leave", flush=True)

    def _missing(self, serving: Serving, layers: int) -> list[str]:
        """Return how the next machines should choose their layers."""
        if not self._fixed:
            return [""]
        missing = [(1, serving.first), (serving.end, layers - 1)]
        return [f" --layers {first}:{end}" for first, end in missing if first < end]
