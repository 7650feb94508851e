"""The transport benchmark runs, and ours is the faster muxer."""

import pytest
import trio

from p2pinfer.bench.transport import transport_bench


@pytest.mark.real
async def test_our_muxer_beats_the_librarys() -> None:
    """A round trip over our muxer takes at most a third of one over libp2p's, in one run."""
    with trio.fail_after(60):
        figures = await transport_bench(rounds=1)
    assert figures["ratio"]["round_trip_p50_ms"] > 3
