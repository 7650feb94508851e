"""Get a llama.cpp that works here: compile it, try it, and go without AMX if it crashes."""

import shlex
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from p2pinfer._setup.commands import CommandFailed, SetupError, Shell
from p2pinfer._setup.system import Need, compiles
from p2pinfer._setup.wheel import (
    NATIVE,
    WITHOUT_AMX,
    BuildVariant,
    is_installed,
    provide_wheel,
    wheel_folder,
)

AMX = Need(
    "AMX",
    "- - -",
    "c++",
    "#ifndef __AMX_INT8__\n#error\n#endif\nint main() { return 0; }\n",
    ("-march=native",),
)
"""Compiles only where ggml, which asks nothing but the compiler, would use AMX."""

TRIAL = "trial run of llama.cpp"


@dataclass(frozen=True)
class Llama:
    """The llama.cpp of a virtual environment."""

    requirement: str
    venv: Path
    shell: Shell
    gpu: tuple[str, ...] = ()
    """CMake's flags for the GPUs that it is compiled for, too."""

    def install(self) -> None:
        """Install the first variant that is not known to crash.

        Raises:
            SetupError: it does not compile.
        """
        self._install(self._variants()[0])

    def prove(self) -> None:
        """Try the installed variant; if it crashes, install the next one and try that.

        A crash is recorded beside the wheel, so the next setup does not build that variant.

        Raises:
            SetupError: no variant works; the text says what happened and what to type.
        """
        variants = self._variants()
        for variant, fallback in zip_longest(variants, variants[1:]):
            self._install(variant)
            try:
                self._try()
            except CommandFailed as error:
                if error.lacked_memory:
                    raise SetupError(f"{error}\n{_NO_MEMORY}") from error
                if fallback is None:
                    raise SetupError(f"{error}\n{self._advice(error.how)}") from error
                self._mark(variant).write_text(f"{error.how}\n")
                what = f"llama.cpp {variant.name} ended {error.how}"
                print(f"{what}; trying it {fallback.name}.", flush=True)
            else:
                return

    def _variants(self) -> list[BuildVariant]:
        of_cpu = [NATIVE, WITHOUT_AMX] if compiles(AMX, self.shell) else [NATIVE]
        offered = [each._replace(gpu=self.gpu) for each in of_cpu]
        return [each for each in offered if not self._mark(each).exists()] or offered

    def _mark(self, variant: BuildVariant) -> Path:
        return self._folder(variant) / "crashed"

    def _folder(self, variant: BuildVariant) -> Path:
        return wheel_folder(self.requirement, variant, self.shell.environment)

    def _install(self, variant: BuildVariant) -> None:
        pip = [str(self.venv / "bin" / "python"), "-m", "pip"]
        wheel = provide_wheel(self.requirement, variant, pip, self.shell)
        if not is_installed(wheel, self.venv):
            command = [*pip, "install", "--force-reinstall", "--no-deps", str(wheel)]
            self.shell.run(command, "llama-cpp-python")

    def _try(self) -> None:
        # With the packaged model, whichever model the environment names.
        command = [str(self.venv / "bin" / "python"), "-m", "p2pinfer.engine.llama.smoke"]
        self.shell.run(command, TRIAL, {"P2PINFER_DEFAULT_MODEL": ""})

    def _advice(self, how: str) -> str:
        folders = [self._folder(each._replace(gpu=self.gpu)) for each in (NATIVE, WITHOUT_AMX)]
        kept = shlex.join(str(folder) for folder in folders if folder.exists())
        return (
            f"llama.cpp, as compiled for this CPU, does not work: its trial run ended {how}. "
            "Another compiler may help: set CC and CXX. To compile again from scratch, run:  "
            f"rm -r {kept} && make setup"
        )


_NO_MEMORY = (
    "llama.cpp's trial run was killed, as a system does when memory runs out: it needs about "
    "300 MB. Free some memory, and run the same command again."
)
