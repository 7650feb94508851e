"""``p2pinfer model suggest``: models that are worth pooling machines for."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from p2pinfer.cli.options import AsJson, Memory, option
from p2pinfer.cli.sizes import check_range, parse_bytes
from p2pinfer.core.limits import CONTEXT_DEFAULT, SESSIONS_DEFAULT
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.node.pooling import ModelSize, Share

PEERS_MAX = 1000
"""More than any swarm that one person plans."""


def suggest(
    *,
    memory: Memory = None,
    peers: Annotated[int, option("peers", "Machines that would share the layers.")] = 3,
    sessions: Annotated[int, option("sessions", "Maximum concurrent sessions.")] = SESSIONS_DEFAULT,
    context: Annotated[int, option("context", "Maximum tokens per session.")] = CONTEXT_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Suggest models that machines, each with --memory to give, can run together.

    Those that fit come first, the largest first, then those that need more. Models that are here
    are computed from their files; of the others, sizes are rounded.
    """
    from p2pinfer.cli.machine_options import SESSIONS_MAX
    from p2pinfer.core.checks import POSITIONS_MAX
    from p2pinfer.engine.llama.memory import budget_bytes
    from p2pinfer.engine.store.disk import size_text
    from p2pinfer.node.pooling import PUBLISHED, PUBLISHED_SOURCE, Pool
    from p2pinfer.node.pooling import suggest as shares_of

    check_range("peers", peers, 1, PEERS_MAX)
    check_range("sessions", sessions, 1, SESSIONS_MAX)
    check_range("context", context, 1, POSITIONS_MAX)
    pool = Pool(budget_bytes(parse_bytes("memory", memory)), peers, sessions, context)
    shares = shares_of([*_here(), *PUBLISHED], pool)
    if as_json:
        print(json.dumps({"pool": asdict(pool), "models": [_report(each) for each in shares]}))
        return
    size = memory or size_text(pool.memory_bytes)
    given = "" if memory else ", half of what is free here (--memory)"
    note(
        f"for {peers} peers of {size} each{given}, with {sessions} sessions of {context:,} tokens:"
    )
    for each in shares:
        _print(each, peers)
    note(f"sizes of models that are not here: {PUBLISHED_SOURCE}")


def _here() -> Iterator["ModelSize"]:
    """Yield the models that this machine holds whole, in the store or elsewhere, each once."""
    from p2pinfer.core.errors import UserError
    from p2pinfer.core.manifest import TOKENIZER
    from p2pinfer.core.model_names import readable_name
    from p2pinfer.engine.gguf.shards import read_model
    from p2pinfer.engine.store.assemble import whole_header
    from p2pinfer.engine.store.split import check_whole
    from p2pinfer.node.model_supply import open_store, seen_before
    from p2pinfer.node.other_caches import find_downloaded
    from p2pinfer.node.pooling import measured

    store = open_store()
    held = store.models()
    for manifest in held:
        if all(store.held(part) for part in manifest.parts):
            header = whole_header(store, manifest, TOKENIZER)
            yield measured(header, readable_name(manifest.name), manifest.id[:12], manifest.size)
    for found in find_downloaded():
        if seen_before(found.path, store) is None:
            try:
                header = read_model(found.path).header
                check_whole(header)
                named = str(found.name or found.path)
                yield measured(header, found.title, named, found.nbytes)
            except UserError:
                continue  # model find tells why


def _report(each: "Share") -> dict[str, Any]:
    return {
        **asdict(each.model),
        "fits": each.fits,
        "needs_pool": each.needs_pool,
        "layers_each": each.layers_each,
        "peers_min": each.peers_min,
        "copies": round(each.copies, 2),
        "layer_needs_bytes": each.layer_needs_bytes,
        "peer_needs_bytes": each.peer_needs_bytes,
        "requester_needs_bytes": each.requester_needs_bytes,
    }


def _print(each: "Share", peers: int) -> None:
    """Print a model's line, and below it what it needs."""
    from p2pinfer.engine.store.disk import size_text

    model = each.model
    license_ = model.license or "licence not stated"
    here = ", is here" if model.is_here else ""
    print(f"{model.title}  {size_text(model.nbytes)}, {model.layers} layers, {license_}{here}")
    if each.fits and not each.needs_pool:
        verdict = "fits into one peer"
    elif each.fits:
        verdict = f"fits, {each.layers_each} layers a peer, each layer held {each.copies:.1f} times"
    elif each.peers_min is None:
        verdict = f"needs {size_text(each.layer_needs_bytes)} of each peer for one layer alone"
    else:
        verdict = (
            f"needs {each.peers_min} such peers, or {size_text(each.peer_needs_bytes)} of each of"
            f" {peers}"
        )
    print(f"    {verdict}; the requester needs {size_text(each.requester_needs_bytes)}")
    print(f"    --model {model.model}")
