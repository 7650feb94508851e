"""The default model as it is kept: of every stripe, whichever eight of its sixteen shares."""

from pathlib import Path
from random import Random

from p2pinfer.core.erasure import encode, rebuild
from p2pinfer.core.stripes import DATA_SHARES, PARITY_SHARES, Layout
from p2pinfer.engine.store.split import add_model
from p2pinfer.engine.store.store import Store
from tests.support.toys import quiet

SAMPLES = 3
"""Choices of eight shares, of each stripe."""
MODEL_STRIPES_MIN = 16


def test_sampled_shares_of_every_stripe_give_identical_bytes(
    default_model: Path, tmp_path: Path
) -> None:
    """All data and all parity; chunks that are shorter than their stripe's share, too."""
    store, chance = Store(tmp_path), Random(8)
    manifest = add_model(store, default_model, quiet)
    parts = {part.hash: part for part in manifest.parts}
    stripes, chunks = 0, 0
    for band in Layout(manifest, DATA_SHARES, PARITY_SHARES).each():
        for stripe, size in enumerate(band.shares_bytes):
            at = band.at(stripe)
            chunks += len(at)
            data = [
                store.read_chunk(parts[at[row].part], at[row].number) if row in at else b""
                for row in range(DATA_SHARES)
            ]
            whole = [each.ljust(size, b"\0") for each in data] + encode(data, PARITY_SHARES)
            for _ in range(SAMPLES):
                left = chance.sample(range(len(whole)), DATA_SHARES)
                lost = [row for row in range(len(whole)) if row not in left]
                shares = {row: data[row] if row < DATA_SHARES else whole[row] for row in left}
                found = rebuild(DATA_SHARES, PARITY_SHARES, shares, lost, size)
                assert found == {row: whole[row] for row in lost}
            stripes += 1
    assert stripes >= MODEL_STRIPES_MIN
    assert chunks == sum(part.chunk_count for part in parts.values())
