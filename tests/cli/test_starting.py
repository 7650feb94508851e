"""How much disk a local swarm takes, and what is printed while it starts."""

import io
from pathlib import Path

import pytest
import trio
from rich.console import Console
from trio.testing import MockClock

from p2pinfer.cli import terminal
from p2pinfer.cli.starting import disk_bytes
from p2pinfer.cli.terminal import QUIET_S, QUIET_S_MAX, Spinner, doing
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.node.loading_steps import loading
from p2pinfer.node.local_swarm import relayed, store_of
from p2pinfer.node.model_supply import name_model, open_store, open_whole
from tests.support.toys import write_toy


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartsModel:
    """Return a toy model of four layers that is in the store."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    store = open_store()
    return open_whole(
        name_model(str(write_toy(tmp_path / "m.gguf")), store, lambda *_: None), store
    )


def files_bytes(*folders: Path) -> int:
    """Return the total size of all files in some folders."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def test_predicted_disk_use_matches_what_is_written(model: PartsModel, tmp_path: Path) -> None:
    """Except for headers; nothing is predicted once the files exist."""
    ranges, homes = [LayerRange(1, 2), LayerRange(2, 3)], tmp_path / "homes"
    said = disk_bytes(model, ranges, homes)
    model.stage(1, 2)
    model.ends(1)
    other = store_of(homes / "1")
    other.add_manifest(model.manifest.encode(), model.id)
    for name in model.manifest.needed(2, 3):
        part = model.manifest.part(name)
        for index in range(len(part.chunks)):
            other.write_chunk(part, index, model.store.path(part).read_bytes())
        other.finish(part)
    open_parts(other, model.manifest, homes / "1" / "cache").stage(2, 3)
    taken = files_bytes(model.cache, homes)
    headers = 5 * 2048  # of four slices and a manifest
    assert taken - headers <= said <= taken
    assert disk_bytes(model, ranges, homes) == 0


def test_the_first_load_on_a_machine_is_announced_as_a_probe(tmp_path: Path) -> None:
    """Because it takes long; later loads are plain loads."""
    path = tmp_path / "stage-1-2.gguf"
    assert loading("layers 1:2", (path,), 1).startswith("probing layers 1:2 ")
    Path(f"{path}.probe-1.json").touch()
    assert loading("layers 1:2", (path,), 1) == "loading layers 1:2 …"
    assert loading("layers 1:2", (path,), 2).startswith("probing layers 1:2 ")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the buffer of what is printed without a terminal."""
    written = io.StringIO()
    monkeypatch.setattr(terminal, "notes", Console(file=written, width=200))
    monkeypatch.setattr("p2pinfer.cli.terminal.time.monotonic", trio.current_time)
    return written


async def test_a_long_step_is_named_with_its_duration(
    shown: io.StringIO, autojump_clock: MockClock
) -> None:
    """A quick step is not."""
    async with doing("Starting …") as done:
        done.step("quick …")
        await trio.sleep(1)
        done.step("slow …")
        await trio.sleep(2 * QUIET_S)
        done.step("slower …")
        await trio.sleep(16 * QUIET_S - 0.1)
        done()
        await trio.sleep(10 * QUIET_S_MAX)
    lines = shown.getvalue().splitlines()
    assert lines[:3] == ["Starting …", "slow …", "slower …"]
    assert lines[3:] == [f"slower … ({each} s)" for each in (6, 16, 36)]


async def test_a_starting_peers_log_lines_are_relayed(
    shown: io.StringIO, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Whole lines only, until it is ready."""
    log, told = tmp_path / "log", list[str]()
    with log.open("w", buffering=1) as written:
        async with trio.open_nursery() as nursery:
            with relayed(nursery, log, told.append):
                monkey = Spinner("Joining …", at_once=True)
                monkey.step("loading …")
                written.write(f"{shown.getvalue()}not yet a li")
                written.flush()
                await trio.sleep(1)
            written.write("ne\n")
            await trio.sleep(1)
    assert told == ["Joining …", "loading …"]
