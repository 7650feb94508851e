"""Three machines without parts: one adds the default model, the others fetch from it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from p2pinfer.core.manifest import Manifest
from p2pinfer.engine.store.store import Store
from tests.real.test_cli import joined
from tests.support.commands import run
from tests.support.stored import flip

pytestmark = pytest.mark.real

FIRST_COMMAND = "p2pinfer join --layers 1:15 --network nothing"


def store_in(home: Path) -> Store:
    """Open the store in a home directory."""
    return Store(home / "data" / "store")


def check_parts(home: Path, seeded: Store, manifest: Manifest, names: tuple[str, ...]) -> None:
    """Check that a home holds exactly these parts of a model, with the same bytes."""
    store = store_in(home)
    held = {part.name for part in manifest.parts if store.held(part)}
    assert held == set(names)
    for part in map(manifest.part, names):
        assert store.path(part).read_bytes() == seeded.path(part).read_bytes()


def test_three_commands_in_three_empty_homes(tmp_path: Path) -> None:
    """Each types what the first one printed, holds only what it needs, and can repair it."""
    homes = [tmp_path / name for name in ("first", "second", "asker")]
    with joined(homes[0], FIRST_COMMAND) as first:
        (join_line,) = [line for line in first if " join " in line]
        (chat_line,) = [line for line in first if " chat " in line]
        with joined(homes[1], join_line):
            words = [*shlex.split(chat_line)[1:], "--json", "--max-tokens", "3"]
            result = run(homes[2], *words, stdin="Name a colour.")
            assert result.returncode == 0, result.stderr
            assert json.loads(result.stdout)["tokens"] == 3
            assert [hop["layers"] for hop in json.loads(result.stdout)["route"]] == [
                "1:15",
                "15:29",
            ]
            seeded = store_in(homes[0])
            (manifest,) = seeded.models()
            check_parts(homes[1], seeded, manifest, manifest.needed(15, 29))
            check_parts(homes[2], seeded, manifest, manifest.ends(1))
            check_repair(homes[2], manifest, join_line)


def check_repair(home: Path, manifest: Manifest, join_line: str) -> None:
    """A flipped bit is found, and typing the suggested command repairs the part."""
    layer = manifest.part("layer.0")
    path = store_in(home).path(layer)
    good = path.read_bytes()
    flip(path, 700_000)
    result = run(home, "model", "verify", manifest.id)
    assert result.returncode == 4, result.stderr
    (told,) = re.findall(r"run  p2pinfer (model verify .*) --bootstrap ADDRESS", result.stderr)
    where = re.search(r"--bootstrap \S+", join_line)
    assert where
    words = shlex.split(f"{told} {where[0]} --network nothing")
    result = run(home, *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("damaged: none; fetched again: layer.0\n")
    assert path.read_bytes() == good
