"""The llama.cpp that setup installs: repaired, tried, and without AMX if need be."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from p2pinfer._setup import llama, wheel
from p2pinfer._setup.commands import CommandFailed, SetupError, Shell
from p2pinfer._setup.llama import Llama
from p2pinfer._setup.wheel import NATIVE, REPAIRS, WITHOUT_AMX, BuildVariant, build_variables
from p2pinfer.engine.llama import smoke

REQUIREMENT = "llama-cpp-python==1.2.3"

CONFIGURE = """
#include <immintrin.h>
void configure(unsigned long a)
{
    unsigned long config[8] = {a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7, a + 8};
    _tile_loadconfig(config);
}
"""
"""Each eight bytes of this tile configuration differ, so each need their own store."""

AMX = ["-mamx-tile", "-O3", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"]
WORD_STORE = re.compile(r"mov +%r\w+,(-?0x[0-9a-f]+)?\(%rsp\)")
LOAD = re.compile(r"ldtilecfg (-?0x[0-9a-f]+)?\(%rsp\)")


# What is compiled


def tool(*command: str, text: str = "") -> str:
    """Run a compiler or another tool; return what it printed."""
    result = subprocess.run(command, input=text, text=True, capture_output=True, check=True)
    return result.stdout


def targets_amx() -> bool:
    """Return whether there is a GCC that compiles AMX, and objdump to read its output."""
    if not (shutil.which("gcc") and shutil.which("objdump")):
        return False
    command = ["gcc", *AMX, "-x", "c", "-fsyntax-only", "-"]
    result = subprocess.run(command, input=CONFIGURE, text=True, capture_output=True, check=False)
    return result.returncode == 0


def stored_words(folder: Path, *flags: str) -> set[int]:
    """Compile a tile configuration; return which of its eight words are stored before the load."""
    path = folder / "configure.o"
    tool("gcc", *AMX, *flags, "-x", "c", "-c", "-o", str(path), "-", text=CONFIGURE)
    code = tool("objdump", "-d", "--no-show-raw-insn", str(path))
    load = LOAD.search(code)
    assert load, code
    base = int(load[1] or "0", 16)
    stores = [int(offset or "0", 16) for offset in WORD_STORE.findall(code[: load.start()])]
    return {(offset - base) // 8 for offset in stores} & set(range(8))


@pytest.mark.skipif(not targets_amx(), reason="no GCC for AMX here, or no objdump")
def test_all_of_a_tile_configuration_is_stored_before_it_is_loaded(tmp_path: Path) -> None:
    """GCC's own intrinsic lets it drop stores that the instruction reads; the repair does not."""
    assert stored_words(tmp_path, "-include", str(REPAIRS)) == set(range(8))
    if int(tool("gcc", "-dumpversion").partition(".")[0]) <= 12:  # known to need it
        assert stored_words(tmp_path) == {0}


@pytest.mark.parametrize(("language", "variable"), [("c", "CFLAGS"), ("c++", "CXXFLAGS")])
def test_repairs_are_included_before_every_file(
    language: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In C and in C++, wherever the tree is, followed by the variant's flags."""
    repairs = tmp_path / "a folder" / "repairs.h"
    repairs.parent.mkdir()
    shutil.copy(REPAIRS, repairs)
    monkeypatch.setattr(wheel, "REPAIRS", repairs)
    flags = shlex.split(build_variables(WITHOUT_AMX)[variable])
    assert flags == ["-include", str(repairs), "-U__AMX_INT8__"]
    assert "repairs.h" in tool("cc", *flags, "-M", "-x", language, "-")


def test_only_its_variant_removes_amx() -> None:
    """The macro that ggml checks is undefined there, whatever the target CPU."""
    if not targets_amx():
        pytest.skip("no GCC for AMX here")
    macros = [
        tool("gcc", "-mamx-int8", *variant.flags, "-dM", "-E", "-x", "c", "-")
        for variant in (NATIVE, WITHOUT_AMX)
    ]
    assert ["__AMX_INT8__" in each for each in macros] == [True, False]


def test_a_wheel_with_other_repairs_or_flags_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each variant has its own folder, and a changed header leads to new ones."""

    def folders() -> set[Path]:
        return {wheel.wheel_folder(REQUIREMENT, each, {}) for each in (NATIVE, WITHOUT_AMX)}

    before = folders()
    assert len(before) == 2
    changed = tmp_path / "repairs.h"
    changed.write_text(f"{REPAIRS.read_text()}/* and one more */")
    monkeypatch.setattr(wheel, "REPAIRS", changed)
    assert not before & folders()


# What is tried


class Machine:
    """A machine on which some variants of llama.cpp fail; it records what setup does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, amx: bool = True) -> None:
        self.codes: dict[str, int] = {}
        self.done: list[str] = []
        self.installed: BuildVariant | None = None
        self.folder = folder
        monkeypatch.setattr(llama, "compiles", lambda *_: amx)
        monkeypatch.setattr(llama, "provide_wheel", self.build)
        monkeypatch.setattr(llama, "is_installed", lambda path, _: path == self._wheel())

    def _wheel(self) -> Path | None:
        return self.installed and self._path(self.installed)

    def _path(self, variant: BuildVariant) -> Path:
        return wheel.wheel_folder(REQUIREMENT, variant, self.environment) / "llama.whl"

    @property
    def environment(self) -> dict[str, str]:
        """Where it keeps its wheels."""
        return {"XDG_CACHE_HOME": str(self.folder)}

    def build(self, _: str, variant: BuildVariant, *__: object) -> Path:
        """Compile a variant unless its wheel exists."""
        path = self._path(variant)
        if not path.exists():
            self.done.append(f"build {variant.name}")
            path.parent.mkdir(parents=True)
            path.write_text(variant.name)
        return path

    def run(
        self, command: Sequence[str], title: str, more: Mapping[str, str] | None = None
    ) -> None:
        """Install a wheel, or try the installed one."""
        if title == "llama-cpp-python":
            name = Path(command[-1]).read_text()
            self.installed = next(v for v in (NATIVE, WITHOUT_AMX) if v.name == name)
            return
        assert title == llama.TRIAL
        assert self.installed
        self.done.append(f"try {self.installed.name}")
        if code := self.codes.get(self.installed.name):
            raise CommandFailed("the end of its output", code)

    def set_up(self) -> list[str]:
        """Install and prove llama.cpp as setup does; return what was done."""
        self.done = []
        shell = Shell(self.environment, self.folder, self.folder / "log")
        object.__setattr__(shell, "run", self.run)
        mine = Llama(REQUIREMENT, self.folder / ".venv", shell)
        mine.install()
        mine.prove()
        return self.done


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with AMX on which everything works."""
    return Machine(tmp_path, monkeypatch)


def test_a_working_build_is_kept(machine: Machine) -> None:
    """The second setup compiles nothing, and tries the installed one."""
    assert machine.set_up() == [f"build {NATIVE.name}", f"try {NATIVE.name}"]
    assert machine.set_up() == [f"try {NATIVE.name}"]


@pytest.mark.parametrize("code", [-signal.SIGSEGV, -signal.SIGILL, -signal.SIGALRM, 1])
def test_after_a_crash_it_is_built_without_amx(machine: Machine, code: int) -> None:
    """Also after a hang or wrong numbers; and the next setup remembers it."""
    machine.codes = {NATIVE.name: code}
    first = [f"{what} {each.name}" for each in (NATIVE, WITHOUT_AMX) for what in ("build", "try")]
    assert machine.set_up() == first
    assert machine.installed == WITHOUT_AMX
    assert machine.set_up() == [f"try {WITHOUT_AMX.name}"]
    machine.installed = None  # another clone, with a venv of its own
    assert machine.set_up() == [f"try {WITHOUT_AMX.name}"]


def test_a_crash_of_every_variant_is_an_error_with_a_remedy(machine: Machine) -> None:
    """The command in the error makes the next setup start from scratch."""
    machine.codes = {NATIVE.name: -signal.SIGSEGV, WITHOUT_AMX.name: -signal.SIGILL}
    with pytest.raises(SetupError) as caught:
        machine.set_up()
    text = str(caught.value)
    assert "ended on signal 4 (SIGILL)" in text
    assert text.endswith("&& make setup")
    assert "the end of its output" in text
    with pytest.raises(SetupError):
        machine.set_up()
    assert machine.done == [f"try {WITHOUT_AMX.name}"]
    command = text.rpartition("rm -r ")[2].removesuffix(" && make setup")
    for folder in shlex.split(command):
        shutil.rmtree(folder)
    machine.codes = {}
    machine.installed = None
    assert machine.set_up() == [f"build {NATIVE.name}", f"try {NATIVE.name}"]


def test_without_amx_there_is_no_second_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compile the same code again."""
    machine = Machine(tmp_path, monkeypatch, amx=False)
    machine.codes = {NATIVE.name: -signal.SIGSEGV}
    with pytest.raises(SetupError, match="SIGSEGV"):
        machine.set_up()
    assert machine.done == [f"build {NATIVE.name}", f"try {NATIVE.name}"]


def test_lack_of_memory_is_not_blamed_on_the_build(machine: Machine) -> None:
    """After a killed trial, nothing else is built and nothing is marked as crashed."""
    machine.codes = {NATIVE.name: -signal.SIGKILL}
    with pytest.raises(SetupError, match="memory"):
        machine.set_up()
    machine.codes = {}
    assert machine.set_up() == [f"try {NATIVE.name}"]


def test_a_crashed_command_says_how_it_ended(tmp_path: Path) -> None:
    """The error names the signal."""
    shell = Shell(dict(os.environ), tmp_path, tmp_path / "log")
    code = "import os; os.kill(os.getpid(), 11)"
    with pytest.raises(CommandFailed) as caught:
        shell.run([sys.executable, "-c", code], "some step")
    assert caught.value.how == "on signal 11 (SIGSEGV)"


# The trial itself


@pytest.mark.real
def test_the_trial_run_passes_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """For three numbers of rows, results with and without repacking agree."""
    assert smoke.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(smoke.CHUNKS)


@pytest.mark.real
def test_the_trial_run_detects_wrong_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a tile configuration with leftovers of the stack would give."""

    def decode(_: Path, *, repack: bool) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.full((56, 4), 1.5 if repack else 1.0, np.float32)

    monkeypatch.setattr(smoke, "decode", decode)
    assert smoke.main() == 1
    assert "50% apart" in capsys.readouterr().out
