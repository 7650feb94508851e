"""llama.cpp's libraries by their folder: which there are, whether they fit, and what they find."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2pinfer.core.errors import EngineError, UserError
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.engine.gpu import Search
from p2pinfer.engine.llama import devices, libraries
from p2pinfer.engine.llama.drivers import driver_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="other names of libraries")

END = "dylib" if sys.platform == "darwin" else "so"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Make a folder as releases have it, of empty files."""
    for name in (
        *("ggml-base", "ggml.vulkan.v1", "llama.vulkan.v1", "llama-common"),
        *("ggml-cpu-haswell", "ggml-cpu-zen4", "ggml-vulkan", "ggml-cuda-12", "ggml-rpc"),
    ):
        (tmp_path / f"lib{name}.{END}").touch()
    return tmp_path


def test_libraries_are_found_also_under_longer_names(release: Path) -> None:
    """Not those whose name only begins alike."""
    assert libraries.required("llama", release).name == f"libllama.vulkan.v1.{END}"
    assert libraries.required("ggml", release).name == f"libggml.vulkan.v1.{END}"
    assert libraries.library("mtmd", release) is None
    found = [path.name for path in libraries.backends(release)]
    assert found == [f"libggml-cuda-12.{END}", f"libggml-vulkan.{END}"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """With the variable, and what is missing."""
    with pytest.raises(UserError, match=r"P2PINFER_LLAMA must name a folder.* is no folder"):
        libraries.required("llama", tmp_path / "none")
    with pytest.raises(UserError, match="has no libllama"):
        libraries.required("llama", tmp_path)


def test_without_a_library_for_this_cpu_there_is_a_sentence(release: Path) -> None:
    """Files that do not load are as if they were not there."""
    assert libraries.is_split(release)
    with pytest.raises(UserError, match=r"no library of llama\.cpp for this CPU"):
        libraries.cpu_backend(release)


def test_the_pinned_llama_cpp_has_the_version_that_folders_must_have() -> None:
    """A new pin must change the number, too."""
    libraries.check_version(libraries.compiled_folder())


def test_another_version_is_refused(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its structures may be others."""
    monkeypatch.setattr(libraries, "GGML_VERSION", "0.24")
    with pytest.raises(UserError, match=r"has ggml 0\.\d+.*needs 0\.24: choose another release"):
        libraries.check_version(libraries.compiled_folder())


def test_a_function_that_a_build_lacks_fails_only_when_it_is_called() -> None:
    """The bindings declare many that nobody here calls."""
    declared: list[str] = []

    def declaring(_: object) -> object:
        return lambda name, *_: lambda _: declared.append(name)

    module = SimpleNamespace(ctypes_function_for_shared_library=declaring)
    libraries._replace_loading(module, Path())  # type: ignore[arg-type] # a stand-in
    of_function = module.ctypes_function_for_shared_library(SimpleNamespace(there=1))
    of_function("there", [])(print)
    missing = of_function("gone", [])(print)
    assert declared == ["there"]
    with pytest.raises(EngineError, match="has no gone"):
        missing(1, 2)


def linked(folder: Path) -> Path:
    """Make a folder with links to the llama.cpp that setup compiled."""
    for path in libraries.compiled_folder().iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def test_a_named_folder_is_what_runs(tmp_path: Path) -> None:
    """All of it: the bindings load no ggml of their own beside it."""
    code = (
        "from p2pinfer.engine.llama import binding, libraries; from pathlib import Path;"
        "print(binding._ggml.cpu);"
        "maps = Path('/proc/self/maps');"
        "print(sorted({Path(line.split()[-1]).name for line in maps.read_text().splitlines()"
        " if 'ggml' in line or 'libllama' in line}) if maps.exists() else '')"
    )
    folder = linked(tmp_path)
    environment = python_environment() | {libraries.FOLDER_VARIABLE: str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    cpu, loaded = done.stdout.splitlines()
    assert Path(cpu).parent == folder
    assert loaded.count("libllama") <= 1


def test_no_gpu_is_found_where_llama_cpp_knows_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own where a folder is named, else without one."""
    if libraries.backends(libraries.compiled_folder()):
        pytest.skip("the llama.cpp here was compiled for GPUs")
    monkeypatch.delenv(libraries.FOLDER_VARIABLE, raising=False)
    devices.search.cache_clear()
    assert devices.chosen("auto") is None
    assert devices.backends() == ()
    monkeypatch.setenv(libraries.FOLDER_VARIABLE, str(linked(tmp_path)))
    devices.search.cache_clear()
    assert devices.search() == Search()
    devices.search.cache_clear()
    with pytest.raises(UserError, match=r"cuda0 is not here: llama.cpp finds no GPU"):
        devices.chosen("cuda0")
    devices.search.cache_clear()


def test_a_search_that_crashes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver may do it; the CPU is used then, and a named GPU is refused."""
    monkeypatch.setenv(libraries.FOLDER_VARIABLE, str(linked(tmp_path)))
    crash = [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]
    monkeypatch.setattr(devices, "python_command", lambda _: crash)
    devices.search.cache_clear()
    assert "SIGSEGV" in devices.search().problem
    assert devices.chosen("auto") is None
    with pytest.raises(UserError, match="SIGSEGV"):
        devices.chosen("cuda0")
    devices.search.cache_clear()


def test_a_sentence_of_the_search_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as about another version."""
    monkeypatch.setenv(libraries.FOLDER_VARIABLE, str(linked(tmp_path)))
    said = [sys.executable, "-c", f"print({json.dumps(json.dumps('of another version'))})"]
    monkeypatch.setattr(devices, "python_command", lambda _: said)
    devices.search.cache_clear()
    with pytest.raises(UserError, match="of another version"):
        devices.chosen("off")
    devices.search.cache_clear()


def test_drivers_are_read_where_their_systems_tell(tmp_path: Path) -> None:
    """NVIDIA's in a file; where nothing is known, the kernel's version."""
    path = tmp_path / "proc/driver/nvidia/version"
    path.parent.mkdir(parents=True)
    path.write_text("NVRM version: 535.1\nGCC version: 12\n")
    assert driver_of("CUDA0", tmp_path) == "NVRM version: 535.1"
    assert driver_of("ROCm1", tmp_path) == f"{os.uname().sysname} {os.uname().release}"
    assert driver_of("Vulkan0", tmp_path)


def test_the_search_itself_prints_only_json(tmp_path: Path) -> None:
    """Whatever libraries print."""
    environment = python_environment() | {libraries.FOLDER_VARIABLE: str(linked(tmp_path))}
    command = python_command("p2pinfer.engine.llama.devices")
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert isinstance(json.loads(done.stdout), list)
