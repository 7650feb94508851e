"""What the code of kept models costs, in processor time: load does not count."""

import pytest

from p2pinfer.bench.storage import storage_bench

MB_PER_S_MIN = 150


@pytest.mark.long
@pytest.mark.parametrize("lost", [1, 8])
def test_a_core_codes_150_megabytes_a_second(lost: int) -> None:
    """Both ways; and not by being measured where nothing is done."""
    found = storage_bench(9, lost)["mb_per_s_best"]
    assert min(found["encode"], found["rebuild"]) >= MB_PER_S_MIN
