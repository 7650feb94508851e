"""Compile llama.cpp for this CPU once, and keep the wheel in the user's cache."""

import contextlib
import hashlib
import json
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from p2pinfer._setup.commands import SetupError, Shell
from p2pinfer._setup.lock import locked

FLAGS = (
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    # Its matrix kernels treat 1 and 2 rows differently, so batching would change a row's result.
    "-DGGML_LLAMAFILE=OFF",
)

REPAIRS = Path(__file__).with_name("repairs.h")
"""A header that is included before every file; it says what it repairs."""


class BuildVariant(NamedTuple):
    """One way to compile llama.cpp for this CPU."""

    name: str
    flags: tuple[str, ...] = ()
    """For the C and C++ compilers, in addition to the repairs."""
    gpu: tuple[str, ...] = ()
    """For CMake: the GPUs that it also computes on, and what of them the build depends on."""


NATIVE = BuildVariant("with all features of this CPU")
WITHOUT_AMX = BuildVariant("without AMX", ("-U__AMX_INT8__",))
"""ggml includes its AMX code if the compiler reports AMX; the CPU's other features are still used.
For machines that report AMX but refuse it, as under some hypervisors."""


def pinned_requirement(project: Mapping[str, Any]) -> str:
    """Return llama-cpp-python's requirement from a parsed pyproject.toml, its only place.

    Raises:
        SetupError: it is not pinned with `==`.
    """
    for requirement in project["project"]["dependencies"]:
        if re.fullmatch(r"llama-cpp-python==[\w.]+", requirement):
            return str(requirement)
    raise SetupError("pyproject.toml must name llama-cpp-python==VERSION among its dependencies")


def cpu_features() -> str:
    """Return text that differs between CPUs for which `-march=native` differs."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"flags", "Features"}:  # x86; ARM
                return " ".join(sorted(value.split()))
    with contextlib.suppress(OSError):
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor()


def wheel_key(
    requirement: str, flags: Sequence[str], repairs: str, machine: str, libc: str, cpu: str
) -> str:
    """Return a build's folder name; Python's version does not matter, as the tag is py3-none."""
    built = "\n".join([requirement, *flags, repairs, machine, libc, cpu])
    return f"{requirement.replace('==', '-')}-{hashlib.sha256(built.encode()).hexdigest()[:12]}"


def wheel_folder(requirement: str, variant: BuildVariant, environment: Mapping[str, str]) -> Path:
    """Return where this machine's wheel is kept."""
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    libc = " ".join(platform.libc_ver())
    flags = (*FLAGS, *variant.gpu, *variant.flags)
    cpu = cpu_features()
    key = wheel_key(requirement, flags, REPAIRS.read_text(), platform.machine(), libc, cpu)
    return Path(cache, "p2pinfer", "wheels", key)


def build_variables(variant: BuildVariant) -> dict[str, str]:
    """Return the variables that a build of llama.cpp runs with.

    Compiler flags go where CMake takes its initial ones from, since CMAKE_ARGS is split at spaces,
    even within quotes. A person's own flags are left out: GMP's -I is not for llama.cpp, which must
    find its own ggml.h first, and they are not part of the wheel's key.
    """
    flags = shlex.join(["-include", str(REPAIRS), *variant.flags])
    cmake = " ".join((*FLAGS, *variant.gpu))
    return {
        "CMAKE_ARGS": cmake,
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "LDFLAGS": "",
    }


def provide_wheel(
    requirement: str, variant: BuildVariant, pip: Sequence[str], shell: Shell
) -> Path:
    """Return the wheel for this machine, from the cache or built from source.

    Raises:
        SetupError: it does not compile.
    """
    folder = wheel_folder(requirement, variant, shell.environment)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # clones of the project share it
        if kept := sorted(folder.glob("*.whl")):
            return kept[0]
        what = "GPU, once: up to an hour" if variant.gpu else "CPU, once: about 3 minutes"
        print(f"Compiling llama.cpp for this {what} on 2 cores.")
        print(f"  Its wheel will be kept in {folder}", flush=True)
        scratch = folder / "building"
        shutil.rmtree(scratch, ignore_errors=True)  # left by an interrupted build
        # A wheel from the index or pip's cache does not say which flags it was built with.
        options = ["-v", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
        shell.run(
            [*pip, "wheel", *options, "--wheel-dir", str(scratch), requirement],
            "llama.cpp",
            build_variables(variant),
        )
        [built] = scratch.glob("*.whl")
        wheel = built.rename(folder / built.name)
        shutil.rmtree(scratch, ignore_errors=True)
        return wheel


def is_installed(wheel: Path, venv: Path) -> bool:
    """Return whether the venv has llama-cpp-python from exactly this wheel."""
    pattern = "lib/python*/site-packages/llama_cpp_python-*.dist-info/direct_url.json"
    urls = [json.loads(path.read_text())["url"] for path in venv.glob(pattern)]
    return urls == [wheel.as_uri()]
