"""What people read about a swarm: the table of peers, and the doctor's findings."""

import io
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from attrs import evolve
from rich.console import Console

from p2pinfer.cli.doctor import (
    clock_findings,
    coverage_findings,
    gpu_findings,
    is_public,
    peer_findings,
    probe_findings,
    router_findings,
)
from p2pinfer.cli.peers import BAR_CHARS_MIN, HEADINGS, bar, cells, detours, odds, table
from p2pinfer.cli.sizes import parse_bytes
from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.errors import UserError
from p2pinfer.engine.gpu import Gpu, Search
from p2pinfer.engine.llama.probe_reports import ProbeReport
from p2pinfer.node.checks_db import ProvedRows
from p2pinfer.node.local_peers import Here
from p2pinfer.node.observer import ObservedPeer
from tests.support.adverts import through
from tests.support.gpus import CARD, EMULATED, ON_BOARD
from tests.support.swarm import MODEL, peer

NOW_MS = 1_800_000_000_000


def said(name: str, first: int, end: int) -> Advertisement:
    """Return the advertisement of a peer that serves a range."""
    return Advertisement(
        peer=peer(name), addresses=("/ip4/192.168.1.7/tcp/1/p2p/x",), model=MODEL,
        model_name="toy", layers=30, first=first, end=end, context=256, numerics_class="0" * 32,
        sequence=NOW_MS, row_us=250, sessions_max=8, sessions_free=3, queued_rows=17,
    )  # fmt: skip


def test_a_bar_shows_the_range_within_the_model() -> None:
    """However coarse the bar, a served layer is visible."""
    assert bar(said("a", 0, 15), 10) == "█████░░░░░"
    assert bar(said("a", 29, 30), 10) == "░░░░░░░░░█"
    assert bar(said("a", 4, 5), 30) == "░░░░█" + "░" * 25
    assert bar(said("a", 0, 0), 10) == "░" * 10


def test_a_row_shows_all_that_is_known() -> None:
    """Unknown values are left out."""
    row = cells(ObservedPeer(said("a", 1, 15), True, 0.0123), 10)
    assert row[2:] == ("1:15", "serving", "0.25", "17", "3/8", "", "12.3 ms")
    known = ObservedPeer(said("a", 1, 15), True, None, standing=0.256)
    assert cells(known, 10)[-2:] == ("26 %", "")
    joining = evolve(said("a", 0, 0), state=State.JOINING, row_us=0, sessions_max=0)
    assert cells(ObservedPeer(joining, False, None), 10)[2:] == (
        "none",
        "joining",
        "",
        "17",
        "",
        "",
        "no answer",
    )


def test_what_was_proved_is_said_with_its_odds() -> None:
    """And why nothing was proved, also where some of it was before; in JSON, too."""
    some = ObservedPeer(said("a", 1, 15), True, 0.1, proved=ProvedRows(8, 1_200, 7.0, ""))
    none = ObservedPeer(said("b", 1, 15), True, 0.1, proved=ProvedRows(0, 0, 8.0, "it refused"))
    one, two = odds([some, ObservedPeer(said("c", 1, 15), True, 0.1), none])
    assert one.startswith(f"…{peer('a')[-6:]}: of the 1,200 rows")
    assert "8 were opened" in one
    assert one.endswith("caught with a chance of 57 %")
    assert two == f"…{peer('b')[-6:]} was not proved the last time: it refused"
    assert some.as_dict()["proved"] == {
        "rows": 8,
        "of_rows": 1_200,
        "at": 7.0,
        "chance_if_a_tenth_is_false": 0.5695,
        "not_proved": None,
    }
    assert ObservedPeer(said("a", 1, 15), True, 0.1).as_dict()["proved"] is None


def test_the_table_fits_a_narrow_terminal() -> None:
    """Nothing of it is cut at 80 columns."""
    console = Console(width=80, record=True, file=io.StringIO())
    draining = evolve(said("a", 10, 15), state=State.DRAINING, row_us=99_990)
    console.print(table([ObservedPeer(draining, False, None, standing=1.0)], BAR_CHARS_MIN))
    shown = console.export_text().replace("…" + peer("a")[-6:], "").replace("abababababab…", "")
    assert "…" not in shown
    assert all(heading in shown for heading in HEADINGS)


def test_a_models_name_is_shown_literally() -> None:
    """A peer chooses the name: brackets in it are not markup for the table."""
    console = Console(width=80, record=True, file=io.StringIO())
    odd = evolve(said("a", 1, 15), model_name="toy [/red] [bold]")
    console.print(table([ObservedPeer(odd, True, None)], BAR_CHARS_MIN))
    assert "toy [/red] [bold], 30 layers" in console.export_text()


def test_missing_layers_and_single_holders_are_named() -> None:
    """As a range with exclusive end, and with the last layer spelled out."""
    found = coverage_findings([said("a", 1, 12), said("b", 5, 12), said("c", 18, 29)], {peer("c")})
    texts = {finding.text: finding.is_good for finding in found}
    (missing,) = [text for text, is_good in texts.items() if not is_good]
    assert missing.startswith("no peer serves layers 12:18 (12 to 17) of toy: start another peer")
    assert any(text.startswith("only this machine's peer …") for text in texts)
    assert not any("all layers" in text for text in texts)
    hidden = evolve(said("b", 1, 29), addresses=())
    assert coverage_findings([hidden], set())[0].text.startswith(
        "no peer serves layers 1:29 (1 to 28)"
    )
    whole = coverage_findings([said("a", 1, 29), said("b", 1, 29)], set())
    assert [(finding.is_good, finding.text) for finding in whole] == [
        (True, "all layers of toy are served")
    ]


def ahead(name: str, seconds: float) -> ObservedPeer:
    """Return a peer whose clock is ahead by some seconds."""
    return ObservedPeer(said(name, 1, 2), True, 0.001, clock_ahead_s=seconds)


@pytest.mark.parametrize(
    ("ahead_s", "is_good", "words"),
    [
        (
            (3600.0,),
            False,
            "1 of 1 other peers are ahead of this machine's by about 3,600 s: set this",
        ),
        ((-7200.0, -7000.0, 0.0), False, "2 of 3 other .* behind this .* 7,000 s: set this"),
        ((0.0, 0.0, 900.0), True, "1 of 3 other peers are ahead .* set theirs from the network"),
    ],
)
def test_clocks_that_differ_are_reported(
    ahead_s: Sequence[float], is_good: bool, words: str
) -> None:
    """In either direction; the clock that differs from most is the one to set."""
    (finding,) = clock_findings([ahead("a", seconds) for seconds in ahead_s])
    assert finding.is_good is is_good
    assert re.search(words, finding.text)


def test_clocks_that_differ_a_little_are_not_reported() -> None:
    """Half a minute is fine, and so is a swarm without other peers."""
    assert clock_findings([ahead("a", 30), ahead("b", -30)]) == []
    assert clock_findings([]) == []


def test_own_peers_are_looked_up_and_dialled() -> None:
    """A peer that the swarm does not know, one whose port is closed, and no peer at all."""
    (none,) = peer_findings({}, [])
    assert "p2pinfer join" in none.text
    (unknown,) = peer_findings({peer("a"): ""}, [])
    assert "does not know it" in unknown.text
    closed = peer_findings({peer("a"): ""}, [ObservedPeer(said("a", 1, 2), False, None)])
    assert [finding.is_good for finding in closed] == [True, False]
    assert "firewall" in closed[1].text
    hidden = ObservedPeer(evolve(said("a", 1, 2), addresses=()), False, None)
    assert "open its port" in peer_findings({peer("a"): ""}, [hidden])[1].text
    assert cells(hidden, BAR_CHARS_MIN)[-1] == "hidden"
    relayed = ObservedPeer(
        evolve(said("a", 1, 2), addresses=(through("r"),)), True, 0.1, way="through relay …xxxxxr"
    )
    behind = peer_findings({peer("a"): ""}, [relayed])[1]
    assert behind.is_good
    assert "called through relay …xxxxxr: to be dialled without a relay, open" in behind.text
    advised = peer_findings({peer("a"): "forward TCP port 40123"}, [relayed])[1]
    assert "called through relay …xxxxxr: forward TCP port 40123" in advised.text
    assert detours([relayed, hidden]) == [f"reached through relay …xxxxxr: …{peer('a')[-6:]}"]
    lost = ObservedPeer(relayed.said, False, None, way="through relay …xxxxxr")
    assert not peer_findings({peer("a"): ""}, [lost])[1].is_good


def test_settings_that_probes_ruled_out_are_reported_with_the_reason() -> None:
    """After the build and the CPU; none of it keeps a peer from serving."""
    why = "it ended on signal 11 (SIGSEGV)"
    report = ProbeReport(
        "stage-1-10",
        "0.3.36 ab12 CPU : AVX2 = 1 | AMX_INT8 = 1 | FMA = 0 |",
        "amx_int8 avx2 fpu fma smep sse2",
        "weights as they are",
        (("repacked weights", why),),
    )
    findings = probe_findings([report])
    assert [finding.text for finding in findings] == [
        "llama.cpp 0.3.36, build ab12, uses AVX2 AMX_INT8 of this CPU's amx_int8 avx2 fma",
        f"stage-1-10 runs with weights as they are; not with repacked weights: {why}",
    ]
    assert all(finding.is_good for finding in findings)
    assert not probe_findings([])


@pytest.mark.parametrize(
    ("search", "backends", "used", "texts"),
    [
        (Search(), (), None, ["no GPU is used: llama.cpp was compiled for CPUs alone; to have"]),
        (Search(), ("cuda",), None, ["for cuda, and finds none: is a driver for it installed?"]),
        (Search(problem="it crashed"), ("cuda",), None, ["no GPU is used: it crashed"]),
        (
            Search((EMULATED, CARD, ON_BOARD)),
            ("cuda", "vulkan"),
            CARD,
            [
                "Vulkan0 (llvmpipe (LLVM 15)), 20,480 MiB of 20,480 MiB free, driver 1, is not",
                "driver 535, is used for layers that it computes exactly, where it is faster",
                "is not used: CUDA0 is",
            ],
        ),
        (Search((CARD,)), ("cuda",), None, ["driver 535, is not used: --gpu says off"]),
        (
            Search((CARD,)),
            ("cuda",),
            replace(CARD, is_named=True),
            ["is used for layers that it computes exactly"],
        ),
    ],
)
def test_gpus_are_reported_with_the_reason(
    search: Search, backends: tuple[str, ...], used: Gpu | None, texts: list[str]
) -> None:
    """Of each, why it is or is not used; a search that failed is the only fault."""
    findings = gpu_findings(search, backends, used)
    for finding, text in zip(findings, texts, strict=True):
        assert text in finding.text
        assert finding.is_good is not bool(search.problem)


def test_an_emulated_gpu_can_be_used_all_the_same() -> None:
    """The finding says how."""
    (finding,) = gpu_findings(Search((EMULATED,)), ("vulkan",), None)
    assert "not used: it is emulated by the CPU" in finding.text
    assert finding.text.endswith("to use it all the same: --gpu Vulkan0")


def test_public_addresses_are_recognised() -> None:
    """Private ranges and loopback are not public; names are assumed to be."""
    assert is_public("/ip4/8.8.8.8/tcp/1")
    assert is_public("/dns4/example.org/tcp/1")
    assert not is_public("/ip4/192.168.1.7/tcp/1")
    assert not is_public("/ip6/::1/tcp/1")
    assert not is_public("/ip4/nonsense/tcp/1")


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("500MB", 500 * 10**6), ("1.5g", 1_500_000_000), ("7000000", 7_000_000)],
)
def test_sizes_are_parsed_as_people_write_them(text: str, size: int) -> None:
    """In powers of ten or of two, with or without the B."""
    assert parse_bytes("memory", text) == size
    assert parse_bytes("memory", None) is None
    assert parse_bytes("memory", "0") == 0
    for nonsense in ("", "GiB", "-1", "2 furlongs", "i", "8"):
        with pytest.raises(UserError, match="--memory"):
            parse_bytes("memory", nonsense)


def test_what_the_router_said_is_a_finding() -> None:
    """Of each peer on this machine that has asked one."""
    asked = Here(
        peer("a"), (), port_mapping="the router 10.1.0.1 passes port 4001 on to this machine (PCP)"
    )
    (found,) = router_findings([asked, Here(peer("b"), ())])
    assert found.text.endswith(asked.port_mapping)
