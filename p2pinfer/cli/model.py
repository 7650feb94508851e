"""``p2pinfer model``: the models and parts that this machine holds."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from attrs import asdict
from cyclopts import App, Parameter

from p2pinfer.cli.key import proof
from p2pinfer.cli.model_find import find
from p2pinfer.cli.model_suggest import suggest
from p2pinfer.cli.options import (
    OPTIONS,
    AsJson,
    Bootstrap,
    Network,
    NetworkKey,
    Quota,
    ReachFlags,
    option,
)
from p2pinfer.cli.running import run_task
from p2pinfer.cli.sizes import parse_bytes
from p2pinfer.core.errors import EXIT_DAMAGED, UserError
from p2pinfer.core.model_names import readable_name
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.core.manifest import Manifest
    from p2pinfer.engine.store.store import Store
    from p2pinfer.node.lineage import Ancestor
    from transports.base import Reach

NAMED_MAX = 4
"""Missing parts that are named on a line; nobody would read more."""

app = App(
    name="model",
    help="Add, list, check and remove models.",
    help_format="plaintext",
    group_parameters=OPTIONS,
)
app.command(find)
app.command(suggest)
app.command(proof, name="proof-key")


@app.command
def add(
    file: Annotated[
        str,
        Parameter(
            help="GGUF file, or any shard of one (-00001-of-00003.gguf), or 'default'"
            " (SmolLM2-135M-Instruct), or a model of Hugging Face: hf:owner/repo,"
            " hf:owner/repo:QUANT, hf.co/owner/repo:QUANT or owner/repo@quant."
        ),
    ],
    /,
    *,
    in_place: Annotated[
        bool, option("in-place", "Serve the file from where it is; it must stay.", negative="")
    ] = False,
    yes: Annotated[
        bool, option("yes", "Download without asking, whatever its size.", negative="")
    ] = False,
    base: Annotated[
        str | None, option("base", "The model that FILE, an adapter (LoRA), was trained on.")
    ] = None,
    name: Annotated[str | None, option("name", "What to call that model with the adapter.")] = None,
    quota: Quota = None,
    as_json: AsJson = False,
) -> None:
    """Split a model into parts, store them, and print the model's id.

    The parts are copies with headers of their own, so they cannot share disk blocks with the file:
    they take as much space again, and the file may be deleted afterwards. With --in-place nothing
    large is copied: a file that changed or went away is noticed, and its parts are then missing.

    A model of Hugging Face is looked for in the caches of other programs first (p2pinfer model find
    lists them), and served from there. If it is in none, it is downloaded: its size and licence are
    shown before, what has arrived is kept if the connection ends, and its SHA-256 is checked.

    An adapter as llama.cpp's convert_lora_to_gguf.py writes it is added to the model that --base
    names. Together they are a model of their own, which shares all parts of that one.
    """
    from p2pinfer.cli.model_argument import adding_progress, download, name_model
    from p2pinfer.core.manifest import TOKENIZER
    from p2pinfer.engine.gguf.adapters import check_is_adapter
    from p2pinfer.engine.gguf.reader import read_header
    from p2pinfer.engine.store.assemble import whole_header
    from p2pinfer.engine.template import template_remark
    from p2pinfer.node.model_supply import add_located, add_to_base, locate, open_store

    if name is not None and base is None:
        raise UserError("--name is for adapters: say with --base which model FILE was trained on")
    store = open_store(parse_bytes("quota", quota))
    if base is not None:
        adapter = locate(file, lambda *_: None)
        check_is_adapter(read_header(adapter.path))  # before the base is stored, which takes long
        _say_added(add_to_base(adapter, store, name_model(base, store), name), as_json=as_json)
        return
    with adding_progress() as on_progress:
        located = locate(file, on_progress, partial(download, yes=yes))
        manifest = add_located(located, store, on_progress, in_place=in_place)
    _say_added(manifest, as_json=as_json)
    if as_json:
        return
    template = whole_header(store, manifest, TOKENIZER).string("tokenizer.chat_template")
    if remark := template_remark(template, readable_name(manifest.name)):
        note(remark)


def _say_added(manifest: "Manifest", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_summary(manifest)))
        return
    print(manifest.id)
    note(f"{readable_name(manifest.name)}: {_facts(manifest)}")


@app.command(name="list")
def list_(*, as_json: AsJson = False) -> None:
    """List the models that are stored here, whole or in part."""
    from p2pinfer.engine.store.disk import size_text
    from p2pinfer.node.model_supply import open_store

    store = open_store()
    models = [{**_summary(model), "held_bytes": _held(store, model)} for model in store.models()]
    if as_json:
        print(json.dumps({"models": models}))
        return
    if not models:
        note("no models here; to add one: p2pinfer model add default")
    for model in models:
        held = 100 * model["held_bytes"] // model["bytes"]
        size = f"{size_text(model['bytes'])}, {held} % here"
        name = readable_name(model["name"])
        name += f", on {model['base'][:12]}" if model["base"] else ""
        print(f"{model['model'][:12]}  {model['layers']:3} layers  {size:24}  {name}")


@app.command
def show(
    model: Annotated[
        str,
        Parameter(
            help="Model id, the beginning of one if only one model matches, the name of one with an"
            " adapter, or 'default'."
        ),
    ],
    /,
    *,
    parts: Annotated[bool, option("parts", "Also list every part.", negative="")] = False,
    lineage: Annotated[
        bool,
        option(
            "lineage",
            "Also show the rounds in which members taught it, as far as this machine took part.",
            negative="",
        ),
    ] = False,
    bootstrap: Bootstrap = (),
    network: Network = "main",
    network_key: NetworkKey = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model, and show how much of it is stored here and how many losses it survives.

    How safe it is in a swarm is asked of the peers there with --bootstrap; else, it is what a peer
    here that keeps the model saw last.
    """
    from p2pinfer.engine.store.disk import size_text
    from p2pinfer.node.model_supply import find_held, open_store

    store = open_store()
    found = find_held(store, model)
    part_rows = [
        {
            "name": part.name,
            "hash": part.hash,
            "bytes": part.size,
            "chunks": part.chunk_count,
            "held_chunks": len(store.chunks_held(part)),
            "held": store.held(part),
        }
        for part in found.parts
    ]
    safety = _safety(store, found, bootstrap, network, network_key)
    if as_json:
        rounds = {"lineage": [asdict(each) for each in _ancestors(found)]} if lineage else {}
        print(json.dumps({**_summary(found), "safety": safety, **rounds, "parts": part_rows}))
        return
    print(f"model       {found.id}")
    print(f"name        {readable_name(found.name)}")
    _print_base(found)
    print(f"licence     {found.license or 'not stated'}")
    print(f"kind        {found.architecture}, {found.layers} layers, {size_text(found.size)}")
    print(f"context     {found.context:,} tokens")
    print(f"vocabulary  {found.vocabulary:,} tokens")
    print(f"here        {_here(store, found)}")
    if safety:
        print(f"elsewhere   {safety['words']}")
    for path in store.sources(found.parts):
        print(f"served from {path}{'' if path.is_file() else ', which is gone'}")
    if lineage:
        _print_lineage(found)
    if not parts:
        return
    print("part          bytes        here")
    for part in part_rows:
        here = "yes" if part["held"] else f"{part['held_chunks']} of {part['chunks']} chunks"
        print(f"{part['name']:12}{part['bytes']:>14,}  {here if part['held_chunks'] else 'no'}")


@app.command
def verify(
    model: str,
    /,
    *,
    bootstrap: Bootstrap = (),
    network: Network = "main",
    network_key: NetworkKey = None,
    as_json: AsJson = False,
) -> None:
    """Check every part against its hash; fetch damaged and incomplete ones again from a swarm.

    Damaged parts are named and set aside. As long as a part is damaged or incomplete, the exit code
    is 4; --bootstrap names a peer to fetch it from.

    Parameters
    ----------
    model: str
        Model id, or the beginning of one if only one model matches.
    """
    from p2pinfer.cli.address_files import without_files
    from p2pinfer.engine.store.damage import DamagedPart
    from p2pinfer.node.model_supply import find_held, open_store

    reach = ReachFlags(network_key, mdns=False, dht=False).of(network)
    store = open_store()
    found = find_held(store, model)
    # Not only those that are held: a part of the wrong length is damaged too.
    here = [part for part in found.parts if store.placed(part)]
    damaged = []
    for part in here:
        try:
            store.verify(part)
        except DamagedPart as error:
            damaged.append(part.name)
            note(str(error))
    lacking = [part.name for part in found.parts if not store.held(part) and store.begun(part)]
    repaired: list[str] = []
    if lacking and bootstrap:
        ways_in = without_files(bootstrap)
        run_task(lambda: _fetch_again(store, found, lacking, ways_in, reach))
        repaired = [name for name in lacking if store.held(found.part(name))]
    left = [name for name in lacking if name not in repaired]
    report = {"model": found.id, "verified": len(here), "damaged": damaged}
    report |= {"repaired": repaired, "unfinished": left}
    if as_json:
        print(json.dumps(report))
    else:
        count = f"{len(here)} of {len(found.parts)} parts are here"
        fetched = f"; fetched again: {', '.join(repaired)}" if repaired else ""
        print(f"{count}; damaged: {', '.join(damaged) or 'none'}{fetched}")
    if left:
        note(
            f"{', '.join(left)}: to fetch what is missing, run  p2pinfer model verify"
            f" {found.id[:12]} --bootstrap ADDRESS  (join prints one); to add it from a file, run "
            " p2pinfer model add FILE"
        )
        sys.exit(EXIT_DAMAGED)


async def _fetch_again(
    store: "Store", model: "Manifest", names: list[str], bootstrap: Sequence[str], reach: "Reach"
) -> None:
    """Fetch what some parts lack, and show progress."""
    from p2pinfer.cli.terminal import Spinner
    from p2pinfer.node.refetch import repair

    done = Spinner(f"Fetching {', '.join(names)} again …")
    try:
        await repair(store, model, names, bootstrap, reach, done.tell)
    finally:
        done()


@app.command
def calibrate(model: str = "default", /, *, as_json: AsJson = False) -> None:
    """Measure how far the rows of honest machines differ, for audits between numerics classes.

    The whole model must be here.

    Parameters
    ----------
    model: str
        GGUF file, model id, the beginning of one if only one model matches, or 'default'.
    """
    from p2pinfer.cli.model_argument import name_model
    from p2pinfer.engine.llama.calibration import calibrate as measure
    from p2pinfer.engine.llama.measured_bounds import keep_bounds
    from p2pinfer.node.model_supply import open_store, open_whole

    store = open_store()
    found = open_whole(name_model(model, store), store)
    report = measure(found, lambda text: note(f"measuring {text} …"))
    keep_bounds(store, found.id, report)
    if as_json:
        print(json.dumps({"model": found.id, **report}))
        return
    print(f"{'':24}median of 32 rows   furthest row")
    for name, each in report["measured"].items():
        print(f"{name:24}{each['median']:>17.2%}{each['row']:>15.2%}")
    bounds = report["bounds"]
    print(f"{'bounds':24}{bounds['median']:>17.2%}{bounds['row']:>15.2%}")


@app.command
def rm(model: str, /, *, as_json: AsJson = False) -> None:
    """Remove a model and the slices made from it, but not parts that another model shares.

    Parameters
    ----------
    model: str
        Model id, or the beginning of one if only one model matches.
    """
    from p2pinfer.engine.store.disk import size_text
    from p2pinfer.node.model_supply import find_held, open_store, remove_model

    store = open_store()
    found = find_held(store, model)
    freed = remove_model(store, found.id)
    if as_json:
        print(json.dumps({"model": found.id, "freed_bytes": freed}))
    else:
        print(f"removed {readable_name(found.name)}, freeing {size_text(freed)}")


def _print_base(found: "Manifest") -> None:
    from p2pinfer.engine.store.disk import size_text

    if found.base:
        adapter = size_text(sum(part.size for part in found.adapter))
        print(f"base        {found.base.id}")
        print(f"            {readable_name(found.base.name)}, with an adapter of {adapter}")


def _print_lineage(found: "Manifest") -> None:
    for each in _ancestors(found):
        signed = f"{each.signed} of {len(each.members)} members signed"
        print(f"round {each.round:<5} {each.child[:12]}… from {each.parent[:12]}…, {signed}")
        print(f"            {_measured(each)}")


def _measured(of: "Ancestor") -> str:
    """Say what members have signed that a round gained, or why that cannot be said."""
    lacking = of.listed - len(of.judged)
    if not of.listed:
        return "what they measured is not known: no list of judgements that they signed for is here"
    if lacking:
        before = "" if of.judged else "; releases before kept none"
        return (
            f"what they measured is not known: {lacking} of {of.listed} judgements are not here"
            f" as they were signed{before}"
        )
    if of.gain is None:
        return "no sum was taken over"
    gain, tried = of.gain, "" if of.taken == 1 else f"; {of.taken} sums, each tried alone"
    return (
        f"loss on their own lessons lower by {gain.median:.3f} (median; {gain.least:.3f} to"
        f" {gain.most:.3f}), as {gain.members} of them signed{tried}"
    )


def _ancestors(found: "Manifest") -> "list[Ancestor]":
    """Return the rounds that led to a model, the latest first."""
    from p2pinfer.node.lineage import lineage

    return lineage(found.id, note)


def _safety(
    store: "Store",
    manifest: "Manifest",
    bootstrap: Sequence[str],
    network: str,
    network_key: Path | None,
) -> dict[str, Any] | None:
    """Ask a swarm how safe a model is, or else what a keeper here saw; None if nobody knows."""
    from p2pinfer.cli.address_files import without_files
    from p2pinfer.node.keeping import Safety, last_report, look_at_safety
    from scheduler.keeping import in_words

    name = readable_name(manifest.name)
    if not bootstrap:
        if (seen := last_report(manifest.id)) is None:
            return None
        kept, at = seen
        words = in_words(name, kept.may_lose, kept.keepers)
        when = datetime.fromtimestamp(at, UTC).astimezone()
        words += f", as seen at {when:%Y-%m-%d %H:%M}"
        return {"may_lose": kept.may_lose, "keepers": kept.keepers, "words": words}
    reach = ReachFlags(network_key, mdns=False, dht=False).of(network)
    found: list[Safety] = []

    async def look() -> None:
        found.append(await look_at_safety(store, manifest, without_files(bootstrap), reach))

    run_task(look)
    words = in_words(name, found[0].may_lose, found[0].keepers)
    return {"may_lose": found[0].may_lose, "keepers": found[0].keepers, "words": words}


def _summary(manifest: "Manifest") -> dict[str, Any]:
    return {
        "model": manifest.id,
        "name": manifest.name,
        "license": manifest.license,
        "base": manifest.base.id if manifest.base else None,
        "architecture": manifest.architecture,
        "layers": manifest.layers,
        "bytes": manifest.size,
    }


def _facts(manifest: "Manifest") -> str:
    from p2pinfer.engine.store.disk import size_text

    license_ = manifest.license or "licence not stated"
    if manifest.base:
        adapter = size_text(sum(part.size for part in manifest.adapter))
        return f"{readable_name(manifest.base.name)} with an adapter of {adapter}, {license_}"
    return f"{manifest.layers} layers, {size_text(manifest.size)}, {license_}"


def _here(store: "Store", manifest: "Manifest") -> str:
    """Say how much of a model is here, and name the missing parts if they are few."""
    from p2pinfer.engine.store.disk import size_text

    missing = [part.name for part in manifest.parts if not store.held(part)]
    if not missing:
        return f"all of it, in {len(manifest.parts)} parts"
    count = f"{len(manifest.parts) - len(missing)} of {len(manifest.parts)} parts"
    names = ", ".join(missing) if len(missing) <= NAMED_MAX else "--parts lists them"
    return f"{count}, {size_text(_held(store, manifest))}; missing: {names}"


def _held(store: "Store", manifest: "Manifest") -> int:
    """Count the bytes of a model that are here."""
    return sum(
        part.size if store.held(part) else sum(map(part.chunk_size, store.chunks_held(part)))
        for part in manifest.parts
    )
