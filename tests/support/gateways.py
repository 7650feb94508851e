"""Gateways in processes of their own, each with a swarm of local peers."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import COMMAND, environment, read_until, stop


@dataclass
class RunningGateway:
    """A gateway that is ready."""

    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def running_gateway(
    home: Path, *options: str, port: int = 0, **variables: str
) -> Iterator[RunningGateway]:
    """Run ``p2pinfer serve``, on any free port if none is named, until the block ends."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", str(port), "--json", "--until-stdin-closes", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(home, **variables),
        process_group=0,
    )
    try:
        yield RunningGateway(process, json.loads(read_until(process.stdout, b"\n"))["url"])
    finally:
        stop(process)
