"""Layers on a GPU: cut as exactly as the probe says, in a swarm with others, and only if wanted."""

import json
import subprocess
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pinfer.cli.doctor import gpu_findings
from p2pinfer.core.python_process import python_command, python_environment
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.frames import PartConfig
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.slicing import extents, plan_stage, write_slice
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.llama import devices
from p2pinfer.engine.llama.binding import Settings
from p2pinfer.engine.llama.candidate import attempt
from p2pinfer.engine.llama.engine import open_stage
from p2pinfer.engine.llama.probe import Probe
from p2pinfer.engine.llama.probe_reports import probe_reports
from p2pinfer.node.model_supply import name_model, open_store
from p2pinfer.node.requester import ClientOptions, Machine, open_client
from tests.support.gpus import own_gpu
from tests.support.on_gpu import ANSWER_TOKENS
from tests.support.processes import COMMAND, Peer, join, stop, wait_ready
from tests.support.tiny_models import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.real]

NETWORK = "of-gpus"
CONTEXT = 256
LOAD_S_MAX = 1800.0
"""An emulated GPU compiles its shaders for minutes, the first time."""

GREEDY = Sampling(temperature=0.0)
LAYERS = ("1:2", "2:4", "4:6")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Give the GPU here, or skip."""
    return own_gpu(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tiny model."""
    return tiny_model(tmp_path_factory.mktemp("tiny"), "llama", "Q4_0")


@pytest.fixture(scope="module")
def stage(model: Path) -> Path:
    """Give two of its layers."""
    path = model.with_name("stage.gguf")
    write_slice(plan_stage(read_header(model), 2, 4), extents(read_header(model), model), path)
    return path


def on_gpu(*words: object) -> dict[str, Any]:
    """Run something in a process that loads what computes on the GPU."""
    command = python_command("tests.support.on_gpu", *map(str, words))
    done = subprocess.run(command, env=python_environment(), capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probed(stage: Path, gpu: Gpu) -> Probe:
    """Return how the GPU computes the stage; skip where it does that in no way exactly."""
    part = PartConfig(str(stage), tokens=False, logits=False)
    found = attempt(part, Settings(device=gpu.name), gpu.fingerprint)
    if not isinstance(found, Probe):
        pytest.skip(f"{gpu} does not compute the same way twice: {found}")
    return found


def shape(found: Probe) -> str:
    """Return how rows are decoded, for ``on_gpu``."""
    return "fixed" if found.settings.fixed else "usual"


def test_slices_on_the_gpu_say_what_the_whole_model_says_there(
    gpu: Gpu, model: Path, stage: Path, tmp_path: Path
) -> None:
    """To the bit where it is emulated; of other kinds nobody knows yet what they do at a cut."""
    found = on_gpu("cut", model, gpu.name, shape(probed(stage, gpu)), tmp_path)
    assert found["difference"] <= (0 if gpu.why_not else 0.01 * found["largest"])


def test_the_class_names_the_driver(gpu: Gpu, stage: Path) -> None:
    """The same outputs with another driver are of another class."""
    found, part = probed(stage, gpu), PartConfig(str(stage), tokens=False, logits=False)
    newer = replace(gpu, driver=f"{gpu.driver} and newer")
    again = attempt(part, found.settings, newer.fingerprint)
    assert isinstance(again, Probe)
    assert again.settings == found.settings
    assert again.numerics_class != found.numerics_class
    assert attempt(part, found.settings, gpu.fingerprint) == found


async def test_a_stage_on_the_gpu_says_so(gpu: Gpu, stage: Path) -> None:
    """And that its rows are not opened."""
    named = replace(gpu, is_named=True)
    async with open_stage(stage, 2, sessions=1, context=CONTEXT, gpu=named) as engine:
        (part,) = engine.worker.parts
        assert part.device == gpu.name
        assert "GPU" in part.closed


async def test_a_gpu_that_nobody_names_must_be_faster_than_the_cpu(gpu: Gpu, stage: Path) -> None:
    """An emulated one never is."""
    if not gpu.why_not:
        pytest.skip("a real one may be faster")
    async with open_stage(stage, 2, sessions=1, context=CONTEXT, gpu=gpu) as engine:
        assert engine.worker.parts[0].device == ""
    (report,) = probe_reports(stage.parent)
    assert any("is slower than the CPU" in why for _, why in report.ruled_out)


def test_a_gpus_rows_are_within_the_bounds_of_audits_between_classes(gpu: Gpu, stage: Path) -> None:
    """So that a CPU may check what a GPU computed, and the other way round."""
    found = on_gpu("apart", stage, gpu.name, shape(probed(stage, gpu)))
    assert found["outside"] is None
    assert found["apart"] > 0  # it was not the CPU that computed


async def said(peers: list[Peer], model: Path, prompt: list[int], gpu: Gpu | None) -> list[int]:
    """Ask three peers, with ends on the GPU or not."""
    machine = Machine(sessions=1, context=CONTEXT, gpu=gpu)
    store = open_store()
    named = name_model(str(model), store, lambda *_: None)
    ways_in = [peer.address for peer in peers]
    options = ClientOptions(named, ways_in, NETWORK, machine=machine)
    async with open_client(options, store, lambda _: None) as client:
        route = await client.find_route(lambda _: None)
        async with (
            client.open_session(route) as session,
            aclosing(session.generate(prompt, GREEDY, ANSWER_TOKENS)) as tokens,
        ):
            return [token.id async for token in tokens]


async def ask_three(
    home: Path, model: Path, names: list[str], prompt: list[int], gpu: Gpu | None
) -> list[int]:
    """Start a peer for each name of a GPU, one after the other, and ask them."""
    peers: list[Peer] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for layers, name in zip(LAYERS, names, strict=True):
            options = ["--model", str(model), "--layers", layers, "--gpu", name]
            ways_in = [peer.address for peer in peers[:1]]
            processes.append(join(home, options, NETWORK, ways_in))
            peers.append(await trio.to_thread.run_sync(wait_ready, processes[-1], LOAD_S_MAX))
        with trio.fail_after(LOAD_S_MAX):
            return await said(peers, model, prompt, gpu)
    finally:
        for process in processes:
            stop(process)


async def test_a_swarm_on_gpus_says_what_llama_cpp_says_on_one(
    gpu: Gpu, model: Path, stage: Path, tmp_path: Path
) -> None:
    """All three peers and the ends compute there."""
    expected = on_gpu("alone", model, gpu.name, shape(probed(stage, gpu)))
    named = replace(gpu, is_named=True)
    found = await ask_three(tmp_path, model, [gpu.name] * 3, expected["prompt"], named)
    assert found == expected["answer"]


async def test_a_peer_on_a_gpu_serves_beside_others(
    gpu: Gpu, model: Path, stage: Path, tmp_path: Path
) -> None:
    """The answer begins as the one of the GPU alone, though rounding may lead it elsewhere."""
    expected = on_gpu("alone", model, gpu.name, shape(probed(stage, gpu)))
    names = ["off", gpu.name, "off"]
    found = await ask_three(tmp_path, model, names, expected["prompt"], None)
    assert len(found) == ANSWER_TOKENS
    assert found[:3] == expected["answer"][:3]


def test_an_unknown_gpu_is_refused_with_those_that_there_are(gpu: Gpu) -> None:
    """Before anything is loaded."""
    command = [*COMMAND, "chat", "--gpu", "cuda77", "--", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--gpu cuda77 is not here; found: {gpu.name}" in done.stderr.replace("\n", " ")


def test_doctor_names_it(gpu: Gpu) -> None:
    """And an emulated one is not used by itself."""
    devices.search.cache_clear()
    search = devices.search()
    devices.search.cache_clear()
    texts = [each.text for each in gpu_findings(search, devices.backends(), None)]
    assert any(str(gpu) in text and "is not used" in text for text in texts)
