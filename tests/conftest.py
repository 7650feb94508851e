"""Fixtures that more than one folder of tests uses."""

from pathlib import Path

import pytest

from p2pinfer.engine.models import default_model_path


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Give the default model's GGUF, SmolLM2-135M-Instruct in Q4_1."""
    return default_model_path()
