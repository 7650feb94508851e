"""Has a process write down all that it is about to encrypt for other peers.

Python imports this at its start where this folder is on PYTHONPATH; ``TAP`` names the file.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NOISE = "libp2p.security.noise.io"
"""Where what a peer sends is encrypted, whatever it is."""


class _Tap(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == NOISE else None
        loader: Any = spec and spec.loader
        if loader:
            execute = loader.exec_module

            def patched(module: Any) -> None:
                execute(module)
                encrypt = module.NoiseTransportReadWriter.encrypt

                def tapped(self: object, data: bytes) -> bytes:
                    written.write(bytes(data))
                    return bytes(encrypt(self, data))

                module.NoiseTransportReadWriter.encrypt = tapped

            loader.exec_module = patched
        return spec


if "TAP" in os.environ:
    written = Path(os.environ["TAP"]).open("ab", buffering=0)  # noqa: SIM115 -- until it ends
    sys.meta_path.insert(0, _Tap())
