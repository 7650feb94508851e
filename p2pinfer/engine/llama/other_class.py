"""A stage's slice in another numerics class, for measurements: no machine of another is at hand."""

from dataclasses import replace
from pathlib import Path

from p2pinfer.core.errors import EngineError
from p2pinfer.engine.cores import label
from p2pinfer.engine.frames import PartConfig
from p2pinfer.engine.llama.candidate import attempt
from p2pinfer.engine.llama.probe import Probe, keep
from p2pinfer.engine.llama.probed import probed


def in_another_class(path: Path, folder: Path) -> Path:
    """Return another name of a slice, by which it opens in another numerics class, with one thread.

    Args:
        path: of a stage's slice.
        folder: where to put the name, and the probe by which settings are chosen.

    Raises:
        EngineError: no other settings are exact here, or none can be run.
        UnsupportedModel: no settings are.
    """
    part, link = PartConfig(str(path), tokens=False, logits=False), folder / f"other-{path.name}"
    used = probed(part, 1, 1)
    is_flash = used.settings.flash_attention
    for settings in (
        replace(used.settings, flash_attention=not is_flash, values_bf16=False),
        replace(used.settings, flash_attention=True, values_bf16=True),
    ):
        found = attempt(part, settings)
        if isinstance(found, Probe) and found.numerics_class != used.numerics_class:
            link.symlink_to(path)
            keep(found, 1, Path(f"{link}.probe-{label(1, is_most=False)}.json"))
            return link
    raise EngineError(f"{path.name} is computed exactly in one way alone here")
