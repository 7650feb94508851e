"""``p2pinfer model find``: the models that other programs keep on this machine."""

import json
from typing import TYPE_CHECKING, Any

from p2pinfer.cli.options import AsJson
from p2pinfer.logs import note

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it
    from p2pinfer.node.other_caches import Downloaded


def find(*, as_json: AsJson = False) -> None:
    """List the models in the caches of Hugging Face, llama.cpp, LM Studio and Ollama.

    The last word of each line is what --model takes. A model that cannot be split exactly is listed
    with the reason.
    """
    from p2pinfer.engine.store.disk import size_text
    from p2pinfer.node.other_caches import find_downloaded

    found = find_downloaded()
    models = [_described(each, found) for each in found]
    if as_json:
        print(json.dumps({"models": models}))
        return
    if not models:
        note(
            "no other program keeps models here; to download one: p2pinfer model add hf:owner/repo"
        )
    for model in models:
        layers = f"{model['layers']} layers" if model["layers"] else ""
        size = size_text(model["bytes"])
        print(f"{model['program']:12}  {size:>11}  {layers:10}  {model['model']}")
        if model["refused"]:
            print(f"{'':14}{model['refused']}")


def _described(found: "Downloaded", every: "list[Downloaded]") -> dict[str, Any]:
    """Describe a model by its header."""
    from p2pinfer.core.errors import UserError
    from p2pinfer.engine.gguf.model_header import model_info
    from p2pinfer.engine.gguf.shards import read_model
    from p2pinfer.engine.store.split import check_whole
    from p2pinfer.node.model_supply import open_store, seen_before

    report: dict[str, Any] = {
        "program": found.program,
        "model": _name(found, every),
        "title": found.title,
        "path": str(found.path),
        "bytes": found.nbytes,
        "architecture": None,
        "layers": None,
        "license": None,
        "refused": None,
        "id": seen_before(found.path, open_store()),
    }
    try:
        header = read_model(found.path).header
        info = model_info(header)
        report |= {"architecture": info.architecture, "layers": info.layers}
        report["license"] = info.license
        check_whole(header)
    except UserError as error:
        report["refused"] = str(error)
    return report


def _name(found: "Downloaded", every: "list[Downloaded]") -> str:
    """Return what ``--model`` takes for this very file: its published name if that leads here."""
    from p2pinfer.node.other_caches import look_up

    leads_here = found.name is not None and look_up(found.name, every) == found
    return str(found.name if leads_here else found.path)
