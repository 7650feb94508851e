"""``p2pinfer model proof-key``, and ``p2pinfer key`` as earlier versions had it."""

import json
import secrets
import time

from cyclopts import App

from p2pinfer.cli.network import key
from p2pinfer.cli.options import OPTIONS, AsJson, Bootstrap, Network, NetworkKey, ReachFlags
from p2pinfer.cli.running import run_task
from p2pinfer.logs import note

app = App(name="key", help_format="plaintext", group_parameters=OPTIONS)


app.command(key, name="new")


@app.command
def proof(
    model: str = "default",
    /,
    *,
    bootstrap: Bootstrap = (),
    network: Network = "main",
    network_key: NetworkKey = None,
    as_json: AsJson = False,
) -> None:
    """Make this machine's key of a model, with which it checks rows of layers it does not hold.

    Each layer is read once, checked against its hash, folded with secret numbers and forgotten;
    layers that are not here are fetched from --bootstrap, one at a time. The key takes about 1 % of
    the model, stays on this machine, and is made again every week; model rm removes it. If this is
    interrupted, the same command goes on.

    Parameters
    ----------
    model: str
        GGUF file, model id, the beginning of one if only one model matches, or 'default'.
    """
    from p2pinfer.cli.address_files import without_files
    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.cli.terminal import Spinner
    from p2pinfer.core.errors import UserError
    from p2pinfer.core.model_names import readable_name
    from p2pinfer.engine.store.disk import size_text
    from p2pinfer.engine.store.proof_keys import ProofKeys
    from p2pinfer.node.model_supply import open_store
    from p2pinfer.node.proof_keys import make_from_swarm, make_proof_key

    reach = ReachFlags(network_key, mdns=False, dht=False).of(network)
    store = open_store()
    named, keys = name_model(model, store), ProofKeys(store, secrets.token_bytes)
    ways_in, found = without_files(bootstrap), store.manifest(named)
    if found is None and not ways_in:
        raise UserError(
            f"nothing of the model {named[:12]}… is here: name a peer that has it with"
            " --bootstrap ADDRESS  (p2pinfer join prints one)"
        )
    name = readable_name(found.name) if found else f"{named[:12]}…"
    now_s = time.time_ns() / 1e9

    async def make() -> None:
        shown = Spinner(f"folding the layers of {name} …")

        def tell(done: int, of: int) -> None:
            shown.step(f"folding the layers of {name}: {done} of {of}")

        try:
            if ways_in:
                made = await make_from_swarm(
                    keys, store, named, now_s, ways_in, reach, tell, shown.tell
                )
            else:
                assert found
                made = await make_proof_key(keys, store, found, now_s, tell=tell)
        finally:
            shown()
        if as_json:
            report = {"model": named, "layers": len(made.layers), "bytes": made.nbytes}
            print(json.dumps(report))
            return
        print(f"proof key of {name}: {len(made.layers)} layers, {size_text(made.nbytes)}")
        note("rows of its layers can now be checked here without holding them")

    run_task(make)
