"""Has a process write down all that it is about to encrypt for other peers.

Python imports this at its start where this folder is on PYTHONPATH; ``TAP`` names the file.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

RECORDS = "transports.libp2p.noise_records"
"""Where what a peer sends is encrypted, whatever it is."""


class _Tap(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == RECORDS else None
        loader: Any = spec and spec.loader
        if loader:
            execute = loader.exec_module

            def patched(module: Any) -> None:
                execute(module)
                cipher = module._cipher

                def tapped(state: object, way: str) -> Callable[[bytes], bytes]:
                    crypt: Callable[[bytes], bytes] = cipher(state, way)

                    def encrypt(data: bytes) -> bytes:
                        written.write(data)
                        return crypt(data)

                    return encrypt if way == "encrypt" else crypt

                module._cipher = tapped

            loader.exec_module = patched
        return spec


if "TAP" in os.environ:
    written = Path(os.environ["TAP"]).open("ab", buffering=0)  # noqa: SIM115 -- until it ends
    sys.meta_path.insert(0, _Tap())
