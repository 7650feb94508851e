"""Look for GPUs in a process of its own: a driver may be slow, noisy, or end the process."""

import json
import os
import subprocess
from dataclasses import asdict
from functools import cache

from p2pinfer.core.errors import UserError
from p2pinfer.core.exits import ending
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.gpu import OFF, Gpu, Search, choose
from p2pinfer.engine.llama import libraries

SEARCH_S_MAX = 60
"""Drivers that wake a card take some seconds."""


@cache
def search() -> Search:
    """Look for GPUs, once for each process.

    Raises:
        UserError: the folder of libraries that a person names cannot be used.
    """
    where = libraries.folder()
    for name in ("ggml", "ggml-base", "llama"):
        libraries.required(name, where)
    if not (libraries.backends(where) or libraries.named_folder()):
        return Search()  # compiled for CPUs alone
    try:
        done = subprocess.run(
            python_command("p2pinfer.engine.llama.devices"),
            env=python_environment(),
            capture_output=True,
            timeout=SEARCH_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Search(problem=f"the search for GPUs took longer than {SEARCH_S_MAX} s")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return Search(problem=f"the search for GPUs ended {ending(done.returncode)}{said}")
    said = json.loads(done.stdout)
    if isinstance(said, str):
        raise UserError(said)
    return Search(tuple(Gpu(**each) for each in said))


def backends() -> tuple[str, ...]:
    """Return the kinds of GPUs that the llama.cpp here was compiled for."""
    return tuple(
        path.name.split("-")[1].split(".")[0] for path in libraries.backends(libraries.folder())
    )


def chosen(named: str) -> Gpu | None:
    """Return the GPU that engines use; None for the CPU.

    Args:
        named: what ``--gpu`` says.

    Raises:
        UserError: there is none of that name, or the named libraries cannot be used.
    """
    if named.lower() == OFF and not libraries.named_folder():
        return None
    return choose(named, search())


def main() -> None:
    """Print the GPUs that were found, or a sentence, as JSON."""
    # Imported here: the process that only reads this needs neither.
    from p2pinfer.engine.llama.drivers import driver_of
    from p2pinfer.engine.llama.ggml import Ggml

    answers = os.dup(1)
    os.dup2(2, 1)  # whatever drivers print must not mix with the answer
    where = libraries.folder()
    try:
        if libraries.named_folder():
            libraries.check_version(where)
        found = Ggml(where).devices()
    except UserError as error:
        os.write(answers, json.dumps(str(error)).encode())
        return
    builds = " ".join(map(libraries.digest, libraries.backends(where)))
    gpus = [
        Gpu(
            each.name,
            each.description,
            each.kind,
            each.free_bytes,
            each.total_bytes,
            driver_of(each.name),
            builds,
        )
        for each in found
    ]
    os.write(answers, json.dumps([asdict(each) for each in gpus]).encode())


if __name__ == "__main__":
    main()
