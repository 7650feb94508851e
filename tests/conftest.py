"""Fixtures used by several folders of tests."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from p2pinfer import logs
from p2pinfer.engine.gguf.model_header import default_model_path

# No deadline: an example's duration depends on how busy the machine is.
settings.register_profile("p2pinfer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2pinfer")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Provide the default model's GGUF, SmolLM2-135M-Instruct in Q4_1."""
    return default_model_path()


@pytest.fixture(autouse=True)
def _leave_logging_alone() -> Iterator[None]:
    """Undo the logging changes of a command that runs in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.ROOT.setLevel(logging.NOTSET)
    logs.NOTES.handlers.clear()
    logs.NOTES.propagate = True
    logs.NOTES.setLevel(logging.NOTSET)
    logs._is_json = False
