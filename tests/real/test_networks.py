"""A network of founders among real processes: members chat, others and the expelled do not."""

import json
from pathlib import Path

import pytest

from tests.support.commands import report_of, run
from tests.support.processes import start_peers
from tests.support.tiny_models import TINY, write_tiny
from transports.secret import SECRET_BYTES

pytestmark = pytest.mark.real

ASKED = ("--temperature", "0", "--max-tokens", "4", "--no-sponsor", "--json", "Name a colour.")


def test_a_founder_invites_and_expels_a_member(home: Path, tmp_path: Path) -> None:
    """From a network's first command to the last; the invitation brings the ways in, too."""
    member, stranger = tmp_path / "member", tmp_path / "stranger"
    write_tiny(TINY["llama"], model := tmp_path / "tiny.gguf")
    founded = report_of(home, "network", "create", "founded")
    options = ("--model", str(model), "--network-key", founded["file"])
    (peer,) = start_peers(home, [f"1:{TINY['llama'].layers - 1}"], *options, network="founded")
    try:
        refused = run(home, "invite", "--network", "founded")
        assert refused.returncode == 2
        assert "p2pinfer network invite" in refused.stderr

        request = report_of(member, "network", "join")["request"]
        (tmp_path / "request").write_text(
            "\n".join(request[at : at + 70] for at in range(0, 9999, 70))
        )
        invited = report_of(home, "network", "invite", str(tmp_path / "request"), "--as", "ann")
        stolen = run(stranger, "network", "join", invited["invitation"])
        assert (stolen.returncode, stolen.stdout) == (2, "")
        joined = report_of(member, "network", "join", invited["invitation"])
        assert (joined["network"], joined["member"]) == ("founded", True)

        ways = ("--model", str(model), "--bootstrap", peer.address)
        key = ("--network-key", joined["file"])
        asked = run(member, "chat", *ways, *key, *ASKED)
        assert asked.returncode == 0, asked.stderr
        assert [hop["peer"] for hop in json.loads(asked.stdout)["route"]] == [peer.id]
        (seen,) = report_of(member, "peers", *key, "--bootstrap", peer.address)
        assert seen["peer"] == peer.id

        shared = tmp_path / "shared.key"  # what every member knows, as a file of one key for all
        shared.write_text(json.loads(Path(joined["file"]).read_text())["key"])
        shared.chmod(0o600)
        assert len(shared.read_text()) == 2 * SECRET_BYTES
        for_all = ("--network", "founded", "--network-key", str(shared))
        assert run(stranger, "chat", *ways, *for_all, *ASKED).returncode != 0

        assert report_of(home, "network", "expel", "ann")["member"] == invited["member"]
        said = report_of(home, "network", "members")["members"]
        assert said[invited["member"]]["is_expelled"]
        out = run(member, "chat", *ways, *key, *ASKED)
        assert out.returncode != 0
    finally:
        peer.stop()
