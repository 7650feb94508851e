"""Settling over JSON-RPC, on a chain of Foundry's in a process of its own: ``make chain``."""

import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.chains import make_chain, settle_by_command_line
from tests.support.processes import read_until, stop

PROGRAMS = list(Path(__file__).parent.glob("anvil/node_modules/@foundry-rs/anvil-*/bin/anvil"))

pytestmark = pytest.mark.skipif(
    not (PROGRAMS and find_spec("web3")), reason="anvil is not installed: make chain"
)


@pytest.fixture
def rpc() -> Iterator[str]:
    """Run a chain; provide its address."""
    command = [str(PROGRAMS[0]), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0)
    try:
        said = read_until(process.stdout, b"Listening on ")
        said += read_until(process.stdout, b"\n") if not said.endswith(b"\n") else b""
        found = re.search(rb"Listening on (127\.0\.0\.1:\d+)", said)
        assert found
        yield f"http://{found[1].decode()}"
    finally:
        process.terminate()
        stop(process)


def test_the_command_line_pays_over_json_rpc(
    rpc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on any chain: what is sent, waited for and read goes over its endpoint."""
    from web3 import HTTPProvider, Web3

    chain = make_chain(Web3(HTTPProvider(rpc)), tmp_path)
    settle_by_command_line(chain, rpc, tmp_path, monkeypatch, capsys)
