"""The setup that runs before anything is installed: its decisions, and real commands."""

import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from p2pinfer._setup import __main__ as steps
from p2pinfer._setup import gpus
from p2pinfer._setup.commands import (
    PLAIN_LINE_S,
    SetupError,
    Shell,
    Status,
    StepProgress,
    read_status,
)
from p2pinfer._setup.lock import locked
from p2pinfer._setup.system import (
    Need,
    build_environment,
    compiles,
    install_advice,
    install_commands,
    needs,
    package_manager,
    packages_for,
)
from p2pinfer._setup.wheel import (
    FLAGS,
    NATIVE,
    build_variables,
    is_installed,
    pinned_requirement,
    wheel_folder,
    wheel_key,
)

ROOT = Path(__file__).resolve().parent.parent
NEEDS = needs("/include", "python3.12")
COMPILER, CXX, GMP, HEADERS = NEEDS
WAIT_S_MAX = 30
"""Limit for a subprocess of these tests; each takes a fraction of a second."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Return a shell with its own log."""
    return Shell(dict(os.environ), tmp_path, tmp_path / "setup.log")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("  [35/140] /usr/bin/g++ -c x.cpp", Status("compiling", 25)),
        ("[140/140] Linking", Status("compiling", 100)),
        ("  [ 12%] Building CXX object", Status("compiling", 12)),
        ("Collecting libp2p==0.8.1", Status("fetching libp2p==0.8.1")),
        ("Processing /folder/numpy-2.whl", Status("fetching numpy-2.whl")),
        ("  Building wheel for fastecdsa (setup.py): started", Status("compiling fastecdsa")),
        ("Installing collected packages: a, b", Status("installing")),
        ("  -- Found Threads: TRUE", None),
        ("x.c:3: note: a[1/2] is odd", None),
        ("[0/0] Re-running", Status("compiling", 0)),
    ],
)
def test_status_of_a_line(line: str, status: Status | None) -> None:
    """Progress lines of ninja, make and pip are parsed, and other lines are ignored."""
    assert read_status(line) == status


def test_progress_without_a_terminal_is_an_occasional_line() -> None:
    """A log gets a line every 10 percent or 15 seconds, not one per compiled file."""
    stream, now = io.StringIO(), [0.0]
    progress = StepProgress("llama.cpp", stream, lambda: now[0])
    for percent in range(25):
        progress.show(Status("compiling", percent))
    now[0] = 70.0 + PLAIN_LINE_S
    progress.show(Status("compiling", 25))
    progress.finish("done")
    assert stream.getvalue().splitlines() == [
        "  llama.cpp: compiling 10 % (0 s)",
        "  llama.cpp: compiling 20 % (0 s)",
        "  llama.cpp: compiling 25 % (1 min 25 s)",
        "  llama.cpp: done (1 min 25 s)",
    ]


def test_progress_on_a_terminal_is_one_line() -> None:
    """On a terminal each status overwrites the one before, and the last one ends the line."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = StepProgress("llama.cpp", stream, lambda: 0.0)
    progress.show(Status("fetching"))
    progress.show(Status("compiling", 1))
    progress.finish("done")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r\x1b[K") == 3


@pytest.mark.parametrize(
    ("system", "installed", "manager"),
    [
        ("Linux", {"apt-get", "dnf"}, "apt-get"),
        ("Linux", {"dnf"}, "dnf"),
        ("Linux", {"brew"}, None),
        ("Darwin", {"brew", "apt-get"}, "brew"),
        ("Darwin", set[str](), None),
    ],
)
def test_package_manager(system: str, installed: set[str], manager: str | None) -> None:
    """Each platform has its own manager, if it is installed."""
    assert package_manager(system, installed.__contains__) == manager


@pytest.mark.parametrize(
    ("system", "manager", "missing", "command"),
    [
        (
            "Linux",
            "apt-get",
            [COMPILER, CXX, GMP],
            "sudo apt-get install build-essential libgmp-dev",
        ),
        ("Linux", "apt-get", [HEADERS], "sudo apt-get install python3.12-dev"),
        ("Linux", "dnf", NEEDS, "sudo dnf install gcc gcc-c++ gmp-devel python3.12-devel"),
        ("Darwin", "brew", [GMP], "brew install gmp"),
        ("Darwin", "brew", [CXX, GMP], "xcode-select --install"),
        ("Darwin", None, [CXX, GMP], "xcode-select --install"),
    ],
)
def test_advice_names_the_one_command(
    system: str, manager: str | None, missing: list[Need], command: str
) -> None:
    """A person who must install something reads what is missing and what to run."""
    advice = install_advice(system, manager, missing)
    assert advice.endswith(f"Run:  {command}")
    assert all(need.what in advice for need in missing)


def test_advice_without_a_known_manager_names_what_is_missing() -> None:
    """On an unknown system, the thing is named and the package is not guessed."""
    assert install_advice("Linux", None, [GMP]).startswith("Not found: GMP's headers (gmp.h). ")


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "brew"])
def test_installing_asks_no_questions(manager: str) -> None:
    """Every command that setup runs by itself answers yes in advance."""
    packages = packages_for(manager, [GMP])
    commands = install_commands(manager, packages, [] if manager == "brew" else ["sudo", "-n"])
    assert commands[-1][-1] == packages[-1]
    assert manager == "brew" or "-y" in commands[-1]
    assert manager == "brew" or all(command[:2] == ["sudo", "-n"] for command in commands)


def test_build_environment_on_macos_finds_homebrews_gmp() -> None:
    """Only flags for GMP are added to a person's own, with spaces quoted."""
    given = {"CFLAGS": "-O1", "PYTHONPATH": "/elsewhere"}
    result = build_environment(given, "Darwin", lambda name: f"/opt/home brew/bin/{name}")
    assert result["CFLAGS"] == "-O1 '-I/opt/home brew/opt/gmp/include'"
    assert result["LDFLAGS"] == "'-L/opt/home brew/opt/gmp/lib'"
    assert "PYTHONPATH" not in result


def test_build_environment_names_an_existing_compiler() -> None:
    """If the compiler that compiled Python is missing, the system's own replaces it."""
    assert build_environment({"CC": "/gone/gcc -g"}, "Linux", lambda _: None)["CC"] == "cc"
    assert build_environment({"CC": "gcc -g"}, "Linux", lambda _: "/bin/x")["CC"] == "gcc -g"


def test_a_need_is_missing_if_it_does_not_compile(shell: Shell) -> None:
    """A header counts if a compiler finds it, not if a file with its name exists."""
    assert compiles(COMPILER, shell)
    assert compiles(GMP, shell)
    assert not compiles(GMP._replace(source="#include <no_such.h>\n" + GMP.source), shell)
    assert not compiles(GMP._replace(flags=("-lno_such_library",)), shell)
    assert not compiles(COMPILER, Shell({"CC": "/no/such/cc"}, shell.folder, shell.log))


def test_wheel_key_differs_between_builds() -> None:
    """Everything that changes the compiled code changes the folder that keeps it."""
    parts = ("llama-cpp-python==1.2.3", ("-DA=1",), "/**/", "x86_64", "glibc 2.36", "avx2 fma")
    others = ("llama-cpp-python==1.2.4", ("-DA=2",), "", "aarch64", "glibc 2.39", "avx512f fma")
    changed = [(*parts[:i], others[i], *parts[i + 1 :]) for i in range(len(parts))]
    keys = {wheel_key(*each) for each in [parts, *changed]}  # type: ignore[arg-type]  # mixed tuples
    assert len(keys) == 1 + len(parts)
    assert wheel_key(*parts).startswith("llama-cpp-python-1.2.3-")


def test_wheel_is_kept_in_the_users_cache() -> None:
    """XDG_CACHE_HOME moves it."""
    folder = wheel_folder("llama-cpp-python==1.2.3", NATIVE, {"XDG_CACHE_HOME": "/cache"})
    assert folder.parent == Path("/cache/p2pinfer/wheels")


def test_llama_is_pinned_in_pyproject_alone() -> None:
    """The version to compile is read from pyproject.toml; without a pin it is refused."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pinned_requirement(project) in project["project"]["dependencies"]
    with pytest.raises(SetupError, match=r"pyproject\.toml must name"):
        pinned_requirement({"project": {"dependencies": ["llama-cpp-python>=0.3"]}})


def test_dependency_groups_are_plain_requirements() -> None:
    """Old versions of pip do not know groups, so setup passes the entries on as they are."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert all(isinstance(entry, str) for name in ("dev", "model") for entry in groups[name])


def test_llama_is_built_without_the_kernels_that_break_exactness() -> None:
    """Results must not depend on how many rows a batch has."""
    assert "-DGGML_LLAMAFILE=OFF" in FLAGS


def test_only_our_own_wheel_counts_as_installed(tmp_path: Path) -> None:
    """The same version from elsewhere may have been built with other flags."""
    wheel = tmp_path / "cache" / "llama_cpp_python-1-py3-none-any.whl"
    info = tmp_path / "lib/python3.11/site-packages/llama_cpp_python-1.dist-info"
    info.mkdir(parents=True)
    assert not is_installed(wheel, tmp_path)
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///elsewhere.whl"}))
    assert not is_installed(wheel, tmp_path)
    (info / "direct_url.json").write_text(json.dumps({"url": wheel.as_uri()}))
    assert is_installed(wheel, tmp_path)


def test_stamp_follows_what_is_installed_and_where(tmp_path: Path) -> None:
    """A changed pyproject.toml or a moved tree is set up again; the same tree is not."""
    trees = [tmp_path / name for name in ("a", "b")]
    for tree in trees:
        tree.mkdir()
        (tree / "pyproject.toml").write_text("x = 1")
    first = steps.stamp_key(trees[0])
    assert steps.stamp_key(trees[0]) == first
    assert steps.stamp_key(trees[1]) != first
    (trees[0] / "pyproject.toml").write_text("x = 2")
    assert steps.stamp_key(trees[0]) != first


def test_run_logs_everything(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """The person reads one line; the log holds the command and its whole output."""
    shell.run([sys.executable, "-c", "print('noise')"], "some step")
    assert capsys.readouterr().out == "  some step: done (0 s)\n"
    log = shell.log.read_text()
    assert log.splitlines()[1:] == [f"$ {sys.executable} -c 'print('\"'\"'noise'\"'\"')'", "noise"]


def test_failed_run_shows_its_last_lines(shell: Shell) -> None:
    """The error holds the end of the output, and names the log."""
    code = "import sys; [print(i) for i in range(99)]; sys.exit('no disk')"
    with pytest.raises(SetupError) as caught:
        shell.run([sys.executable, "-uc", code], "some step")
    text = str(caught.value)
    assert "    98\n    no disk\nsome step: failed" in text
    assert str(shell.log) in text
    assert "    42\n" not in text


def test_lock_lets_one_process_in(tmp_path: Path) -> None:
    """A second setup of the same folder waits until the first has ended."""
    code = (
        "import pathlib, sys\nfrom p2pinfer._setup.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with locked(tmp_path):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Another setup is at work")
    rest, _ = process.communicate(timeout=WAIT_S_MAX)
    assert (rest, process.returncode) == ("in\n", 0)


@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        'it\'s $5 or "$(touch pwned)" `touch pwned`',
        "$(shell touch pwned)",
        "a\\b; #c\n",
        "$(",
    ],
)
def test_make_chat_passes_the_prompt_unchanged(tmp_path: Path, prompt: str) -> None:
    """Neither make nor the shell interprets anything in a person's question."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    program = tmp_path / ".venv" / "bin" / "p2pinfer"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\nimport sys; print(ascii(sys.argv[1:]))\n")
    program.chmod(0o755)
    command = ["make", "-s", "chat", "PYTHON=true", f"PROMPT={prompt}"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S_MAX, check=False
    )
    assert (result.stdout, result.stderr) == (f"{['demo', '--', prompt]!a}\n", "")
    assert not (tmp_path / "pwned").exists()


# GPUs


@pytest.mark.parametrize(
    ("named", "kept", "system", "kind"),
    [
        (None, None, "Linux", ""),
        ("", "cuda\n", "Linux", "cuda"),
        ("Vulkan", "cuda\n", "Linux", "vulkan"),
        ("none", "cuda\n", "Linux", ""),
        ("metal", None, "Darwin", "metal"),
    ],
)
def test_a_kind_of_gpu_is_kept_until_another_is_named(
    named: str | None, kept: str | None, system: str, kind: str, tmp_path: Path
) -> None:
    """So that `make chat` does not compile for the CPU again."""
    path = tmp_path / "gpu"
    if kept:
        path.write_text(kept)
    assert gpus.gpu_kind(named, path, system) == kind


@pytest.mark.parametrize(
    ("named", "system", "text"),
    [
        ("voodoo", "Linux", "GPU=voodoo is no kind of GPU: choose one of cuda, metal, rocm, vulk"),
        ("metal", "Linux", "GPU=metal is for Macs alone"),
        ("cuda", "Darwin", "GPU=cuda does not exist on Macs; GPU=metal does"),
    ],
)
def test_a_gpu_that_cannot_be_here_is_refused(
    named: str, system: str, text: str, tmp_path: Path
) -> None:
    """Before anything is compiled."""
    with pytest.raises(SetupError, match=text) as caught:
        gpus.gpu_kind(named, tmp_path / "gpu", system)
    assert caught.value.exit_code == 2


def test_what_a_gpu_needs_is_named_with_a_way_without(tmp_path: Path) -> None:
    """A compiler for its kernels; the ready-made libraries need none."""
    shell = Shell({"PATH": str(tmp_path)}, tmp_path, tmp_path / "log")
    for kind, what in (("cuda", "nvcc"), ("rocm", "hipcc"), ("vulkan", "glslc")):
        with pytest.raises(SetupError, match=rf"Not found: .*{what}.*\n.*P2PINFER_LLAMA.*none$"):
            gpus.check_needs(kind, shell)
    gpus.check_needs("metal", shell)
    gpus.check_needs("", shell)


VULKAN_HPP = """
namespace vk {
struct LayerSettingsCreateInfoEXT {};
inline int enumerateInstanceVersion() { return 1; }
}
"""


def test_vulkans_headers_are_found_in_its_sdk(tmp_path: Path) -> None:
    """Where a person has newer ones than the system's."""
    glslc, vulkan, spirv, library = (
        tmp_path / name
        for name in (
            "glslc",
            "include/vulkan/vulkan.hpp",
            "include/spirv/unified1/spirv.hpp",
            "lib/libvulkan.so",
        )
    )
    for path in (vulkan, spirv, library):
        path.parent.mkdir(parents=True)
    glslc.write_text("#!/bin/sh\n")
    glslc.chmod(0o755)
    vulkan.write_text(VULKAN_HPP)
    spirv.touch()
    compiler = ["c++", "-shared", "-x", "c++", "/dev/null", "-o", str(library)]
    subprocess.run(compiler, check=True)
    search = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    shell = Shell({"PATH": search, "VULKAN_SDK": str(tmp_path)}, tmp_path, tmp_path / "log")
    gpus.check_needs("vulkan", shell)
    spirv.unlink()
    with pytest.raises(SetupError, match=r"^Not found: SPIR-V's headers\."):
        gpus.check_needs("vulkan", shell)


def test_a_build_for_a_gpu_has_a_wheel_of_its_own(tmp_path: Path) -> None:
    """And CMake is told, also of the cards that are here."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 8.9\necho 12.0\necho 8.9\n")
    smi.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    shell = Shell({"PATH": path, "XDG_CACHE_HOME": "/cache"}, tmp_path, tmp_path / "log")
    flags = gpus.cmake_flags("cuda", shell)
    assert flags == ("-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=120;89")
    of_cpu, of_gpu = NATIVE, NATIVE._replace(gpu=flags)
    assert build_variables(of_gpu)["CMAKE_ARGS"].endswith(" ".join(flags))
    folders = {wheel_folder("l==1", each, shell.environment) for each in (of_cpu, of_gpu)}
    assert len(folders) == 2
    assert gpus.cmake_flags("vulkan", shell) == ("-DGGML_VULKAN=ON",)
    assert gpus.cmake_flags("", shell) == ()


def test_setup_runs_again_for_another_gpu() -> None:
    """The stamp tells builds apart."""
    assert steps.stamp_key(steps.ROOT, "cuda") != steps.stamp_key(steps.ROOT)
