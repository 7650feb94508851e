"""An invitation that a running peer prints brings another machine into its private network."""

import json
from pathlib import Path

import pytest

from p2pinfer.node.invitation import read_link
from tests.support.commands import report_of, run
from tests.support.processes import start_peers
from tests.support.tiny_models import TINY, write_tiny
from transports.secret import create_secret, read_network_key

pytestmark = pytest.mark.real

ASKED = ("--temperature", "0", "--max-tokens", "4", "--no-sponsor", "--json", "Name a colour.")


def test_a_link_is_all_that_a_newcomer_needs(home: Path, tmp_path: Path) -> None:
    """No address, network, key or model; and one for a single guest is for one, unless revoked."""
    file = home / "invited.key"
    create_secret(file)
    write_tiny(TINY["llama"], model := tmp_path / "tiny.gguf")
    options = ("--model", str(model), "--network-key", str(file))
    layers = f"1:{TINY['llama'].layers - 1}"
    (peer,) = start_peers(home, [layers], *options, network="invited")
    try:
        told = report_of(home, "invite", "--network", "invited")
        assert (told["private"], told["addresses"]) == (True, [peer.address])
        assert read_link(told["link"]).key == read_network_key(file)
        result = run(tmp_path / "elsewhere", "chat", told["link"].lower(), *ASKED)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        assert [hop["peer"] for hop in answer["route"]] == [peer.id]

        once = report_of(home, "invite", "--once", "--network", "invited")["link"]
        assert read_link(once).key is None
        for _ in range(2):  # the key is kept
            (seen,) = report_of(tmp_path / "guest", "peers", once)
            assert seen["peer"] == peer.id
        late = run(tmp_path / "late", "peers", once)
        assert late.returncode == 2
        assert "used already" in late.stderr
        other = report_of(home, "invite", "--once", "--network", "invited")["link"]
        assert report_of(home, "invite", "--revoke", other) == {"revoked": 1}
        assert run(tmp_path / "late", "peers", other).returncode == 2
    finally:
        peer.stop()
