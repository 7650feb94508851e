"""Parts over the memory network: from several holders, whatever some of them do."""

from pathlib import Path

from trio.testing import MockClock

from tests.peers.parts import swarm


async def test_from_three_holders(autojump_clock: MockClock, tmp_path: Path) -> None:
    """All parts arrive, no chunk twice, and every holder gave some."""
    async with swarm(tmp_path) as made:
        for name in "abc":
            await made.add(name)
        await made.fetch()
        assert made.is_whole()
        assert len(set(made.store.written)) == len(made.store.written) == 16
        assert all(server.chunks for server in made.servers.values())
        last = made.told[-1]
        assert last.done_bytes == last.total_bytes == made.model.manifest.size
        assert made.blamed == []
