"""What the system must have before anything is built, and how to get it."""

import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from p2pinfer._setup.commands import EXIT_USAGE, SetupError, Shell

MANAGERS = ("apt-get", "dnf", "brew")


class Need(NamedTuple):
    """One thing that a build needs, and a program that compiles and links only if it is there."""

    what: str
    packages: str  # one per manager; - for brew if Xcode's tools include it
    language: str = ""  # c or c++, as the compiler's -x takes it
    source: str = ""
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """Instead of a program to compile: one that succeeds only if it is there."""


_MAIN = "int main(void) { return 0; }\n"
_GMP = "#include <gmp.h>\nint main(void) { mpz_t n; mpz_init(n); return 0; }\n"


def needs(include: str, python: str) -> list[Need]:
    """Return what llama.cpp and libp2p's fastecdsa (C on GMP, never a wheel) need to compile.

    Args:
        include: the folder where this Python's C headers should be.
        python: its name with major and minor version, as in distributions' package names.
    """
    headers, dev = f"#include <Python.h>\n{_MAIN}", f"{python}-dev {python}-devel -"
    return [
        Need("a C compiler", "build-essential gcc -", "c", _MAIN),
        Need("a C++ compiler", "build-essential gcc-c++ -", "c++", f"#include <vector>\n{_MAIN}"),
        Need("GMP's headers (gmp.h)", "libgmp-dev gmp-devel gmp", "c", _GMP, ("-lgmp",)),
        Need("Python's headers (Python.h)", dev, "c", headers, (f"-I{include}",)),
    ]


def build_environment(
    given: Mapping[str, str], system: str, which: Callable[[str], str | None]
) -> dict[str, str]:
    """Return the variables that compilers and pip run with.

    Args:
        given: this process's own variables.
        system: platform.system().
        which: shutil.which, or a stand-in.
    """
    result = {k: v for k, v in given.items() if k not in {"PYTHONPATH", "PYTHONHOME"}}
    # A person's pip.conf may ask for --user, which fails in a venv.
    result.update(PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    # pip uses the compiler that compiled Python, which may not be on this machine.
    result.setdefault("CC", sysconfig.get_config_var("CC") or "cc")
    if which(shlex.split(result["CC"])[0]) is None:
        result["CC"] = "cc"
    if system == "Darwin" and (brew := which("brew")):  # compilers do not look there by default
        gmp = Path(brew).parent.parent / "opt" / "gmp"
        for name, flag in (("CFLAGS", f"-I{gmp}/include"), ("LDFLAGS", f"-L{gmp}/lib")):
            result[name] = f"{result.get(name, '')} {shlex.quote(flag)}".strip()
    return result


def compiles(need: Need, shell: Shell) -> bool:
    """Return whether the need's program compiles and links here, or its command succeeds."""
    if need.command:
        return shell.succeeds(need.command)
    variable, default = ("CC", "cc") if need.language == "c" else ("CXX", "c++")
    compiler, before, after = (
        shlex.split(shell.environment.get(name, otherwise))
        for name, otherwise in ((variable, default), ("CFLAGS", ""), ("LDFLAGS", ""))
    )
    with tempfile.TemporaryDirectory() as folder:
        probe = ["-x", need.language, "-", "-o", str(Path(folder, "probe"))]
        return shell.succeeds([*compiler, *before, *probe, *after, *need.flags], need.source)


def missing_needs(shell: Shell) -> list[Need]:
    """Return what the system lacks."""
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    wanted = needs(sysconfig.get_path("include"), python)
    missing = [need for need in wanted if not compiles(need, shell)]
    # Debian packages ensurepip, which installs pip into a venv, separately from Python.
    if not shell.succeeds([sys.executable, "-Ic", "import venv, ensurepip"]):
        missing.append(Need("Python's venv module", f"{python}-venv {python}-libs -"))
    return missing


def package_manager(system: str, has: Callable[[str], object]) -> str | None:
    """Return the supported package manager that is installed, if any."""
    known = ("brew",) if system == "Darwin" else ("apt-get", "dnf")
    return next((name for name in known if has(name)), None)


def packages_for(manager: str, missing: Sequence[Need]) -> list[str]:
    """Return the packages for the missing needs, each once, in order."""
    names = [need.packages.split()[MANAGERS.index(manager)] for need in missing]
    return [name for name in dict.fromkeys(names) if name != "-"]


def install_advice(system: str, manager: str | None, missing: Sequence[Need]) -> str:
    """Return sentences that name what is missing and the one command to run."""
    what = f"Not found: {', '.join(need.what for need in missing)}."
    if system == "Darwin" and any(need.packages.endswith("-") for need in missing):
        return f"{what} Run:  xcode-select --install"
    if manager is None:
        return f"{what} Install it with this system's package manager, then repeat this command."
    sudo = [] if manager == "brew" else ["sudo"]
    command = [*sudo, manager, "install", *packages_for(manager, missing)]
    return f"{what} Run:  {shlex.join(command)}"


def install_commands(manager: str, packages: Sequence[str], sudo: Sequence[str]) -> list[list[str]]:
    """Return the commands that install packages without asking questions."""
    if manager == "brew":
        return [["brew", "install", *packages]]
    if manager == "dnf":
        return [[*sudo, "dnf", "install", "-y", *packages]]
    # A fresh machine has no package lists, and its automatic update may hold the lock.
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive"]
    apt += ["apt-get", "-o", "DPkg::Lock::Timeout=120"]
    return [[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *packages]]


def advice_on(wanted: Sequence[Need], shell: Shell) -> str:
    """Return sentences on what of some needs the system lacks; empty if it has all."""
    missing = [need for need in wanted if not compiles(need, shell)]
    if not missing:
        return ""
    system = platform.system()
    return install_advice(system, package_manager(system, shutil.which), missing)


def silent_sudo(manager: str, shell: Shell) -> list[str] | None:
    """Return the command prefix for installing without a password; None if one is needed."""
    if manager == "brew" or os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if shell.succeeds(["sudo", "-n", "true"]) else None


def provide_system_packages(shell: Shell) -> None:
    """Find what the system lacks, and install it if that is possible without a password.

    Raises:
        SetupError: something is still missing; the text names the one command to run.
    """
    missing = missing_needs(shell)
    if not missing:
        return
    system = platform.system()
    manager = package_manager(system, shutil.which)
    advice = install_advice(system, manager, missing)
    packages = packages_for(manager, missing) if manager else []
    sudo = silent_sudo(manager, shell) if manager else None
    if manager is None or sudo is None or not packages:
        raise SetupError(advice, EXIT_USAGE)
    print(f"Not found: {', '.join(need.what for need in missing)}.", flush=True)
    try:
        for command in install_commands(manager, packages, sudo):
            words = ["update"] if command[-1] == "update" else ["install", *packages]
            shell.run(command, shlex.join([manager, *words]))
    except SetupError as error:
        raise SetupError(f"{error}\n{advice}", EXIT_USAGE) from error
    if still := missing_needs(shell):
        raise SetupError(install_advice(system, manager, still), EXIT_USAGE)
