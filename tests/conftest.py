"""Fixtures used by several folders of tests."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from p2pinfer import logs
from p2pinfer.engine.gguf.model_header import default_model_path
from tests.support import gpus as _gpus  # noqa: F401 -- takes what is for tests on a GPU alone
from tests.support.natlab.hosts import why_not
from tests.support.natlab.internet import Internet
from tests.support.surroundings import NOT_LOOKING

os.environ |= NOT_LOOKING  # the processes that tests start, and command lines in this one

# No deadline: an example's duration depends on how busy the machine is.
settings.register_profile("p2pinfer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2pinfer")


SLOW = (
    "real/",  # processes of p2pinfer, the real model
    "bench/test_agent.py",  # the tokenizer's process
    "bench/test_bare_hops.py",  # processes that hand on a message
    "engine/llama/",  # llama.cpp, in this process and in workers
    "engine/training/",  # llama.cpp, and seconds of arithmetic
    "engine/store/test_adapters.py",
    "engine/store/test_assemble.py",
    "engine/store/test_slice_files.py",
    "engine/store/test_split.py",
    "engine/store/test_store_crashes.py",
    "engine/store/test_tebibyte.py",
    "peers/serving/test_vouchers_observed.py",  # a thousand signatures
    "node/test_ledger_kills.py",  # a process that is killed at every step
    "engine/test_template.py",
    "engine/test_template_features.py",
    "api/test_page_alone.py",  # starts a browser
    "cli/test_service.py",
    "core/sums/",  # seconds of arithmetic, and SEAL
    "core/test_python_process.py",
    "fuzz/",
    "honest/",
    "interop/",
    "natlab/test_same_network.py",
    "node/test_hub.py",
    "node/test_proof_keys.py",
    "node/test_learning.py",
    "node/test_lesson_noise.py",
    "node/test_local_swarm.py",
    "peers/parts/test_fetch.py",
    "peers/parts/test_keeper.py",
    "peers/parts/test_mend.py",
    "peers/steps/test_hostile.py",
    "scheduler/test_oracle.py",
    "sim/test_hunt.py",
    "sim/test_learning.py",
    "sim/test_observer.py",
    "sim/test_runs.py",
    "sim/test_ways.py",
    "test_langchain.py",  # the template's process
    "test_docs.py",  # loading all that the pages quote asks the system for libraries
    "test_setup.py",
    "test_setup_llama.py",
    "transports/libp2p/test_circuits.py",
    "transports/libp2p/test_crooked_relays.py",
    "transports/libp2p/test_past_peers.py",
    "transports/libp2p/test_peer_finding.py",
    "transports/libp2p/test_walls.py",
    "transports/libp2p/test_walls_on_circuits.py",
    "transports/port_mapping/test_hostile_router.py",
    "transports/test_interfaces.py",
)
"""Under tests/: what starts processes, or takes seconds. ``make test-fast`` leaves it out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW):
            item.add_marker("slow")
        if "internet" in getattr(item, "fixturenames", ()):
            item.add_marker("nat")
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let only slow tests start processes, so that the fast ones stay fast."""
    start = subprocess.Popen.__init__

    def refuse(process: Any, command: Any, *more: Any, **options: Any) -> None:
        # Importing libp2p asks the system where a library is.
        if sys._getframe(1).f_globals["__name__"] != "ctypes.util":
            raise AssertionError(f"{item.nodeid} starts a process ({command}): add it to SLOW")
        start(process, command, *more, **options)

    if item.get_closest_marker("slow"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse)
        return (yield)


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Provide the default model's GGUF, SmolLM2-135M-Instruct in Q4_1."""
    return default_model_path()


@pytest.fixture(scope="session")
def _why_no_internet() -> str:
    """Try once whether this machine can be several."""
    return why_not()


@pytest.fixture
def internet(_why_no_internet: str) -> Iterator[Internet]:
    """Provide an empty Internet of hosts and NATs on this machine; see `tests.support.natlab`."""
    if _why_no_internet:
        pytest.skip(_why_no_internet)
    with Internet() as net:
        yield net


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
