"""Fixtures of tests in the lab."""

from collections.abc import Iterator

import pytest

from tests.support.natlab.internet import Internet
from tests.support.natlab.peers import World


@pytest.fixture
def world(internet: Internet) -> Iterator[World]:
    """Provide an Internet with three public peers."""
    with World(internet) as made:
        yield made
