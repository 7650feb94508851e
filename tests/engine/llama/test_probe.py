"""The probe finds the fastest exact settings, refuses if there are none, and keeps its result.

The slices here are fakes whose arithmetic has exactly one flaw each, which the probe must see.
"""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pinfer.core.errors import BadModelFile, EngineError, UnsupportedModel
from p2pinfer.core.limits import NARROW_ROWS_MAX
from p2pinfer.engine.llama import probe as probe_module
from p2pinfer.engine.llama.binding import Settings, Span
from p2pinfer.engine.llama.core_shares import shares_folder
from p2pinfer.engine.llama.probe import INEXACT, Attempt, Crash, Probe, probe
from p2pinfer.engine.llama.trial import CONTEXT, Layers, try_settings
from tests.support.fake_slices import (
    KINDS,
    FakeSlice,
    Flaw,
    Loader,
    blocks_depend_on_place,
    blocks_differ_past_512,
    depends_on_other_sessions,
    depends_on_place,
    depends_on_rows,
    depends_on_threads,
    exact,
    one_row_is_split,
    plain_attention_is_inexact,
    regimes_differ,
    repacking_is_inexact,
    run,
    tries,
    trying,
    wide_rows_differ,
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Give a cache file that does not exist yet."""
    return tmp_path / "slice.probe.json"


@pytest.mark.parametrize(
    ("flaw", "threads", "settings", "agree"),
    [
        (exact, 1, Settings(1), True),
        (exact, 2, Settings(2), True),
        (regimes_differ, 1, Settings(1), False),
        (repacking_is_inexact, 1, Settings(1, repack=False), True),
        (one_row_is_split, 1, Settings(1), True),
        (one_row_is_split, 2, Settings(2, flash_attention=False), True),
        (plain_attention_is_inexact, 2, Settings(2, values_bf16=True), True),
        (depends_on_threads, 2, Settings(2, values_bf16=True), True),
    ],
)
def test_the_fastest_exact_settings_are_found(
    flaw: Flaw, threads: int, settings: Settings, agree: bool, cache: Path
) -> None:
    """Each flaw is seen, and the settings that avoid it are taken, with the worker's threads."""
    found = run(flaw, cache, threads=threads)
    assert (found.settings, found.regimes_agree) == (settings, agree)
    assert len(bytes.fromhex(found.numerics_class)) == 16


@pytest.mark.parametrize("flaw", [blocks_depend_on_place, blocks_differ_past_512])
def test_inexact_blocks_are_not_used(flaw: Flaw, cache: Path) -> None:
    """The slice serves without them, in settings that are exact otherwise, and that is kept."""
    assert run(exact, cache.with_suffix(".other")).blocks
    found = run(flaw, cache)
    assert (found.settings, found.regimes_agree, found.blocks) == (Settings(1), True, False)
    assert run(flaw, cache) == found


@pytest.mark.parametrize("flaw", [depends_on_rows, wide_rows_differ, depends_on_other_sessions])
@pytest.mark.parametrize("tokens", [True, False])
def test_fixed_numbers_of_rows_are_the_last_resort(flaw: Flaw, tokens: bool, cache: Path) -> None:
    """Where rows depend on their batch, single ones and always as many wide ones are exact."""
    found = run(flaw, cache, tokens=tokens)
    assert found.settings == Settings(fixed=True)
    assert run(exact, cache) == found  # kept


@pytest.mark.parametrize("flaw", [depends_on_place])
@pytest.mark.parametrize("tokens", [True, False])
def test_a_model_never_exact_is_refused(flaw: Flaw, tokens: bool, cache: Path) -> None:
    """If rows depend on their batch with all settings, nothing is used or cached."""
    with pytest.raises(UnsupportedModel, match="depend on how they are batched"):
        run(flaw, cache, tokens=tokens)
    assert not cache.exists()


def test_classes_distinguish_arithmetics(tmp_path: Path) -> None:
    """The same arithmetic has the same class for any threads; another one has another."""

    def classes(flaw: Flaw, threads: int) -> str:
        return run(flaw, tmp_path / f"{flaw.__name__}-{threads}", threads=threads).numerics_class

    assert classes(exact, 1) == classes(exact, 2)
    assert classes(exact, 1) != classes(regimes_differ, 1)


def test_a_result_is_kept(cache: Path) -> None:
    """The second load of a slice loads nothing for the probe."""
    found = run(regimes_differ, cache, threads=2)
    loader = Loader(exact)
    again = probe(tries(trying(loader)), 2, cache, KINDS)
    assert again == found
    assert loader.settings == []


@pytest.mark.parametrize("change", ["build", "cpu", "threads", "version"])
def test_an_outdated_result_is_not_used(
    change: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another llama.cpp, CPU, thread count or probe version needs a new probe."""
    old = run(regimes_differ, cache)
    threads = 2 if change == "threads" else 1
    if change == "build":
        monkeypatch.setattr(probe_module, "build_fingerprint", lambda: "another")
    if change == "cpu":
        monkeypatch.setattr(probe_module, "cpu_features", lambda: "another")
    if change == "version":
        monkeypatch.setattr(probe_module, "_VERSION", -1)
    assert run(exact, cache, threads=threads) != old
    assert json.loads(cache.read_text())["probe"]["regimes_agree"] is True


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"123", b"null", b"[]", b'"x"', b"{}", b'{"key": 1}', b"KEY", b"SETT"],
)
def test_an_unreadable_cache_is_probed_again(text: bytes, cache: Path) -> None:
    """Whatever the file holds, the slice is probed and the file written again."""
    good = run(exact, cache)
    written = cache.read_bytes()
    values = json.loads(written)
    if text == b"KEY":
        text = json.dumps({"key": values["key"]}).encode()
    elif text == b"SETT":
        values["probe"]["settings"] = {"nonsense": 1}
        text = json.dumps(values).encode()
    cache.write_bytes(text)
    assert run(exact, cache) == good
    assert cache.read_bytes() == written


def test_the_probe_goes_past_the_cells_where_threads_split() -> None:
    """llama.cpp splits one row's attention from 512 cells on; the probe must get there."""
    assert CONTEXT > 512 + NARROW_ROWS_MAX


# It costs little


def test_a_contradiction_ends_a_try() -> None:
    """Where rows depend on their batch from the first on, a tenth of the rows shows it."""
    sound, flawed = Loader(exact), Loader(depends_on_rows)
    assert try_settings(sound, Settings(1), tokens=False)  # type: ignore[arg-type] # a fake
    assert try_settings(flawed, Settings(1), tokens=False) is None  # type: ignore[arg-type]
    assert flawed.loaded[0].rows * 10 < sound.loaded[0].rows


@pytest.mark.parametrize("layers", [(None, None), (3, 1)])
def test_only_the_first_layers_run(layers: Layers) -> None:
    """If the caller says how many have one of each kind among them, fewer far into a session."""
    loader = Loader(exact)
    assert try_settings(loader, Settings(2), tokens=False, layers=layers)  # type: ignore[arg-type]
    assert [each.layers for each in loader.loaded] == [{*layers}]


def test_engines_of_one_machine_search_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many homes they have: the next one tries first what the one before found."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = shares_folder()
    assert shared
    homes = [tmp_path / name for name in "ab"]
    is_turn = list[bool]()

    def ruled_out_in_turn(settings: Settings) -> Probe | Crash | None:
        (lock,) = shared.glob("core-kinds-*")
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_turn.append(False)
            except BlockingIOError:
                is_turn.append(True)
        return trying(Loader(repacking_is_inexact))(settings)

    for home in homes:
        home.mkdir()
        attempt = tries(ruled_out_in_turn)
        probe(attempt, 1, home / "slice.probe.json", KINDS, shared=shared)
    assert is_turn == [True, True, False]  # the last is the other home's only one


def test_what_slices_alike_use_is_tried_first(cache: Path) -> None:
    """A peer that moves to other layers tries one choice; what was ruled out is still said."""
    first = run(repacking_is_inexact, cache)
    loader = Loader(repacking_is_inexact)
    moved = cache.with_name("moved.probe.json")
    assert probe(tries(trying(loader)), 1, moved, KINDS) == first
    assert loader.settings == [first.settings]
    assert json.loads(moved.read_text()) == json.loads(cache.read_text())
    loader = Loader(repacking_is_inexact)
    probe(tries(trying(loader)), 1, cache.with_name("others.json"), "1" * 32)
    assert loader.settings == [Settings(1), first.settings]


def test_what_holds_no_more_is_forgotten(cache: Path) -> None:
    """If the settings of slices alike are not exact for this one, all are tried."""
    run(exact, cache)
    loader = Loader(repacking_is_inexact)
    moved = cache.with_name("moved.probe.json")
    found = probe(tries(trying(loader)), 1, moved, KINDS)
    assert found.settings == Settings(1, repack=False)
    assert [each["why"] for each in json.loads(moved.read_text())["ruled_out"]] == [INEXACT]
    with pytest.raises(UnsupportedModel):
        probe(tries(trying(Loader(depends_on_place))), 1, cache.with_name("third.json"), KINDS)


@pytest.mark.parametrize("text", ["", "{}", '{"key": 1, "probe": {}}'])
def test_an_unreadable_file_about_slices_alike_is_ignored(text: str, cache: Path) -> None:
    """As an unreadable result is."""
    found = run(exact, cache)
    cache.unlink()
    (alike,) = cache.parent.iterdir()
    alike.write_text(text)
    assert run(exact, cache) == found


# Crashes

CANDIDATES = [
    Settings(1, repack, bf16, flash)
    for bf16, flash in ((False, True), (False, False), (True, True))
    for repack in (True, False)
] + [Settings(1, repack, fixed=True) for repack in (True, False)]
SEGFAULT = Crash("it ended on signal 11 (SIGSEGV)", lacked_memory=False)
KILLED = Crash("it ended on signal 9 (SIGKILL)", lacked_memory=True)


def crashing(crashes: dict[Settings, Crash]) -> Attempt:
    """Try settings of which some crash."""
    sound = trying(Loader(exact))
    return lambda settings: crashes.get(settings) or sound(settings)


@pytest.mark.parametrize("survivor", CANDIDATES)
def test_a_crash_rules_out_one_candidate(survivor: Settings, cache: Path) -> None:
    """Whichever settings are left are found, and what was ruled out is kept with the reason."""
    crashes = {each: SEGFAULT for each in CANDIDATES if each != survivor}
    assert probe(tries(crashing(crashes)), 1, cache, KINDS).settings == survivor
    report = json.loads(cache.read_text())
    before = CANDIDATES[: CANDIDATES.index(survivor)]
    assert [Settings(**each["settings"]) for each in report["ruled_out"]] == before
    assert {each["why"] for each in report["ruled_out"]} <= {SEGFAULT.how}
    assert (
        probe(tries(crashing(dict.fromkeys(CANDIDATES, SEGFAULT))), 1, cache, KINDS).settings
        == survivor
    )


def test_inexact_settings_are_reported_as_such(cache: Path) -> None:
    """The reason differs from that of a crash."""
    run(repacking_is_inexact, cache)
    assert [each["why"] for each in json.loads(cache.read_text())["ruled_out"]] == [INEXACT]


def test_if_all_crash_the_sentence_says_how(cache: Path) -> None:
    """It also says what to type; all are tried again next time."""
    with pytest.raises(EngineError, match=r"every setting: .*SIGSEGV.* make clean setup"):
        probe(tries(crashing(dict.fromkeys(CANDIDATES, SEGFAULT))), 1, cache, KINDS)
    assert not cache.exists()


def test_if_the_rest_is_inexact_the_crash_is_named_too(cache: Path) -> None:
    """The model alone is not to blame."""
    flawed = trying(Loader(depends_on_place))
    with pytest.raises(UnsupportedModel, match=r"batched.*SIGSEGV"):
        probe(tries(lambda each: SEGFAULT if each.repack else flawed(each)), 1, cache, KINDS)


def test_layers_that_keep_k_and_v_alike_are_tried_without_bfloat16(cache: Path) -> None:
    """What llama.cpp says of it is kept; of a file that it does not load at all, it is raised."""
    flawed = trying(Loader(wide_rows_differ))

    def attempt(settings: Settings) -> Probe | Crash | None:
        if settings.values_bf16:
            raise BadModelFile("different K (f16) and V (bf16) cache types")
        return flawed(settings)

    assert probe(tries(attempt), 1, cache, KINDS).settings == Settings(1, fixed=True)
    ruled_out = json.loads(cache.read_text())["ruled_out"]
    assert sum("cache types" in each["why"] for each in ruled_out) == 2

    def unloadable(_: Settings) -> Probe | Crash | None:
        raise BadModelFile("no such file")

    with pytest.raises(BadModelFile, match="no such file"):
        probe(tries(unloadable), 1, cache.with_name("other.json"), KINDS)


def test_lack_of_memory_is_not_kept(cache: Path) -> None:
    """Next time there may be more memory, and the fastest settings may work."""
    assert (
        probe(tries(crashing({CANDIDATES[0]: KILLED})), 1, cache, KINDS).settings == CANDIDATES[1]
    )
    assert not cache.exists()
    with pytest.raises(EngineError, match="memory ran out"):
        probe(tries(crashing(dict.fromkeys(CANDIDATES, KILLED))), 1, cache, KINDS)


def test_a_result_that_cannot_be_kept_is_still_used(tmp_path: Path) -> None:
    """As on a full disk; here a folder is in the file's place."""
    assert run(exact, tmp_path).settings == Settings(1)


class StatefulSlice(FakeSlice):
    """One that can only begin again, as slices whose layers keep a state."""

    keeps_state = True

    def __init__(self, settings: Settings, flaw: Flaw) -> None:
        super().__init__(settings, flaw)
        self._held = {0: 0, 1: 0}

    def decode(self, spans: Sequence[Span], *, pad_to: int = 0) -> list[NDArray[np.float32]]:
        """Refuse to drop some positions, or to pad."""
        assert not pad_to
        for span in spans:
            assert span.position in (0, self._held[span.slot])
            self._held[span.slot] = span.position + len(span)
        return super().decode(spans)


@pytest.mark.parametrize(
    ("flaw", "is_exact"),
    [(exact, True), (regimes_differ, False), (depends_on_other_sessions, False)],
)
def test_layers_with_a_state_are_probed_without_dropping_or_padding(
    flaw: Flaw, is_exact: bool
) -> None:
    """They are served where narrow and wide rows agree, and never in blocks."""

    def load(settings: Settings) -> StatefulSlice:
        return StatefulSlice(settings, flaw)

    found = try_settings(load, Settings(2), tokens=False)  # type: ignore[arg-type] # a fake slice
    assert (found is not None) == is_exact
    if found:
        assert (found.regimes_agree, found.blocks) == (True, False)
