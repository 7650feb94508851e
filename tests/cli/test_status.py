"""The status of this machine's processes, as they report it and as it is printed."""

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.cli import status
from p2pinfer.cli.status import ago, cells, lines, rated
from p2pinfer.node import status_socket
from p2pinfer.node.status_socket import ask_all, open_status, running_pids
from p2pinfer.places import run_dir

SESSION = {
    "session": "ab" * 16, "with": ["12D3KooWuvwxyz"], "layers": "1:11", "positions": 50, "rows": 50,
    "age_s": 61.0, "idle_s": 0.1,
}  # fmt: skip
PEER = {
    "pid": 7, "role": "peer", "uptime_s": 100.0, "peer": "12D3KooWabcdef", "state": "serving",
    "addresses": ["/ip4/203.0.113.7/tcp/4001/p2p/12D3KooWabcdef"],
    "model_name": "Toy", "layers": "1:11", "layers_of_model": 30, "ms_per_layer_row": 0.5,
    "sessions_max": 8, "resting": "", "rows": 1000, "queued_rows": 3,
    "sessions": [SESSION],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))


def test_vouchers_are_shown_where_there_are_any() -> None:
    """How many are vouched for here, and that this peer vouches; never who does."""
    assert not [
        line for line in lines(PEER | {"vouched": {"for": 0, "as_one_of": 0}}) if "vouch" in line
    ]
    assert lines(PEER | {"vouched": {"for": 1, "as_one_of": 0}})[-1] == (
        "credit   some serving peer vouches for 1 requester here"
    )
    assert lines(PEER | {"vouched": {"for": 2, "as_one_of": 7}})[-1] == (
        "credit   some serving peer vouches for 2 requesters here;"
        " this one vouches for one from this machine, as one of 7"
    )


async def test_a_process_reports_its_current_status() -> None:
    """Each request gets the status of that moment; before and after, no process is found."""
    assert await ask_all() == []
    told = {"role": "peer", "sessions": []}
    async with open_status(lambda: told):
        for word in ("one", "two"):
            told["state"] = word
            (found,) = await ask_all()
            assert found["pid"] == os.getpid()
            assert found["state"] == word
        mode = (run_dir() / f"{os.getpid()}.sock").stat().st_mode
        assert (mode & 0o777, run_dir().stat().st_mode & 0o777) == (0o600, 0o700)
    assert await ask_all() == []
    assert not running_pids()


async def test_a_refused_connection_does_not_end_the_process(autojump_clock: MockClock) -> None:
    """When too many files are open, the next request is answered after a while."""
    ours, theirs = trio.socket.socketpair()
    waiting: list[Any] = [theirs, OSError(errno.EMFILE, "too many open files")]

    class Listener:
        async def accept(self) -> tuple[Any, str]:
            match waiting.pop() if waiting else None:
                case OSError() as refusal:
                    raise refusal
                case None:
                    await trio.sleep_forever()
                case asker:
                    return asker, ""
            raise AssertionError

    async with trio.open_nursery() as nursery, trio.SocketStream(ours) as stream:
        nursery.start_soon(status_socket._answer, cast("Any", Listener()), lambda _: b"{}")
        assert await stream.receive_some() == b"{}"
        nursery.cancel_scope.cancel()


async def test_a_question_is_answered_beside_the_status() -> None:
    """A question that is too long, malformed or missing (as of an earlier release) is ignored."""
    async with open_status(lambda: {"role": "peer"}, lambda asked: {"asked": asked}):
        (found,) = await ask_all({"sponsor": "12D3KooW"})
        assert (found["role"], found["asked"]) == ("peer", {"sponsor": "12D3KooW"})
        for said in (b"", b"[]\n", b'{"sponsor": \n', b'"' + b"x" * 10_000):
            stream = await trio.open_unix_socket(run_dir() / f"{os.getpid()}.sock")
            async with stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(said)
                answer = await stream.receive_some()
            assert json.loads(answer)["asked"] == {}


async def test_silent_and_malformed_processes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One hangs, one is gone, one sends half an answer; the others are still listed."""
    monkeypatch.setattr(status_socket, "ASK_S_MAX", 0.3)
    silent, gone = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    silent.bind(str(run_dir() / "1.sock"))
    silent.listen()
    gone.bind(str(run_dir() / "2.sock"))
    gone.close()

    async def cut_short(stream: trio.SocketStream) -> None:
        await stream.send_all(b'{"role": ')
        await stream.aclose()

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(run_dir() / "3.sock"))
    listening.listen()
    async with trio.open_nursery() as nursery, trio.SocketListener(listening) as listener:
        nursery.start_soon(trio.serve_listeners, cut_short, [listener])
        async with open_status(lambda: {"role": "peer"}):
            assert [each["pid"] for each in await ask_all()] == [os.getpid()]
        nursery.cancel_scope.cancel()
    silent.close()


async def test_a_client_that_does_not_read_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is answered."""
    monkeypatch.setattr(status_socket, "WRITE_S_MAX", 0.1)
    async with open_status(
        lambda: {"role": "peer", "text": "x" * (status_socket.STATUS_BYTES_MAX // 2)}
    ):
        with socket.socket(socket.AF_UNIX) as lazy:
            lazy.connect(str(run_dir() / f"{os.getpid()}.sock"))
            assert len(await ask_all()) == 1


async def test_sockets_of_dead_processes_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one with this process's own id."""
    monkeypatch.setattr(status_socket, "_is_alive", lambda pid: pid != 2)
    for name in ("1.sock", "2.sock", f"{os.getpid()}.sock", "notes.sock"):
        (run_dir() / name).touch()
    async with open_status(lambda: {"role": "peer"}):
        assert sorted(running_pids()) == sorted([1, os.getpid()])
        assert len(await ask_all()) == 1


async def test_a_process_that_is_several_peers_reports_them_all() -> None:
    """Each has a socket of its own; what is left behind of a dead process is removed."""
    dead = run_dir() / "4194305.2.sock"  # above the largest id of a process
    dead.touch()

    ready = trio.Semaphore(0)

    async def run(model: str, until: trio.Event) -> None:
        async with open_status(lambda: {"role": "peer", "model": model}):
            ready.release()
            await until.wait()

    over = {model: trio.Event() for model in "ABC"}
    async with trio.open_nursery() as nursery:
        for model, event in over.items():
            nursery.start_soon(run, model, event)  # all at once
        for _ in over:
            await ready.acquire()
        assert {each["model"] for each in await ask_all()} == {*over}
        assert running_pids() == [os.getpid()]
        assert not dead.exists()
        over["A"].set()
        nursery.start_soon(run, "D", trio.Event())
        await ready.acquire()
        assert {each["model"] for each in await ask_all()} == {"B", "C", "D"}
        nursery.cancel_scope.cancel()
    assert not running_pids()


async def test_a_path_too_long_for_a_socket_does_not_stop_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the process goes on."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / ("x" * 120)))
    async with open_status(lambda: {"role": "peer"}):
        assert "will not see this process" in caplog.text
        assert await ask_all() == []


def test_speeds_come_from_two_samples() -> None:
    """Of processes in both samples; a new session has no speed yet."""
    grown = SESSION | {"positions": 80}
    now = PEER | {"uptime_s": 100.5, "rows": 1030, "sessions": [grown, grown | {"session": "cd"}]}
    (found,) = rated([PEER], [now, PEER | {"pid": 8}])
    assert found["rows_per_s"] == 60.0
    assert [each["positions_per_s"] for each in found["sessions"]] == [60.0, 0.0]
    row = cells(found["sessions"][0] | {"pid": 7, "role": "peer"})
    assert row == ("abababab", "7 peer", "…uvwxyz", "1:11", "80", "60.0", "1 min 1 s", "0 s")


def test_lines_describe_a_process() -> None:
    """Whether it serves, rests or still joins, for which peers, and how fast; a gateway too."""
    said = "\n".join(lines(PEER | {"rows_per_s": 60.0}))
    for words in (
        "serving layers 1:11 of 30, Toy",
        "address  /ip4/203.0.113.7/tcp/4001/p2p/",
        "at most 200 a second; 60 rows/s now, 1,000 so far",
        "1 of 8, for …uvwxyz; 3 rows queued",
    ):
        assert words in said
    assert "resting: on battery; layers 1:11" in "\n".join(lines(PEER | {"resting": "on battery"}))
    assert "other peers cannot dial it" in "\n".join(lines(PEER | {"hidden": True}))
    reached = {"reached": "others call it through relay …a", "advice": "forward TCP port 1"}
    assert "reached  others call it through relay …a; forward TCP" in "\n".join(
        lines(PEER | reached)
    )
    joining = {key: PEER[key] for key in ("pid", "role", "uptime_s", "peer")}
    assert lines(joining | {"state": "joining", "sessions": []})[1] == "state    joining"
    gateway = {
        "pid": 9, "role": "gateway", "uptime_s": 5, "url": "http://127.0.0.1:1", "state": "serving",
        "model_name": "Toy", "answers_running": 2, "answers_waiting": 1, "sessions_max": 24,
        "sessions": [],
    }  # fmt: skip
    assert lines(gateway)[2:] == ["answers  2 running, 1 waiting", "sessions 0 of 24"]


def test_durations_are_written_in_two_units() -> None:
    """From seconds to days."""
    durations = [ago(seconds) for seconds in (9.9, 75, 7_260, 200_000)]
    assert durations == ["9 s", "1 min 15 s", "2 h 1 min", "2 d 7 h"]


def test_commands_report_that_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """As a sentence for a person, as an empty list for a program."""
    status.status()
    status.ps()
    said = capsys.readouterr().out
    assert status.NOTHING_RUNS in said
    assert "no sessions are open on this machine" in said
    status.status(as_json=True)
    status.ps(as_json=True)
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first, second) == ({"processes": [], "served": 0, "used": 0}, [])


def test_a_peer_says_what_its_router_said() -> None:
    """Where one was asked."""
    text = "the router 10.1.0.1 passes port 4001 on to this machine (PCP)"
    assert f"router   {text}" in lines(PEER | {"port_mapping": text})
    assert not any(each.startswith("router") for each in lines(PEER | {"port_mapping": ""}))


def test_status_says_how_often_relays_were_done_without() -> None:
    """Of a peer and of a gateway; nothing where nobody behind a router was called."""
    assert not any("punched" in line for line in lines(PEER))
    punching = {"won": 1_234, "lost": 66}
    said = "punched  1,234 of 1,300 tries to connect with a peer without its relay"
    assert said in lines(PEER | {"punching": punching})
    assert not any("punched" in line for line in lines(PEER | {"punching": {"won": 0, "lost": 0}}))
    gateway = {
        "pid": 7, "role": "gateway", "uptime_s": 1.0, "url": "http://127.0.0.1:1", "state": "up",
        "model_name": "Toy", "answers_running": 0, "answers_waiting": 0, "sessions_max": 2,
        "sessions": [], "punching": punching,
    }  # fmt: skip
    assert lines(gateway)[-1] == said
