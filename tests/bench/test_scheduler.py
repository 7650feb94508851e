"""The benchmark of decisions runs, and prints the figures it promises."""

from p2pinfer.bench.scheduler import scheduler_bench


async def test_every_decision_is_timed() -> None:
    """A median and a worst time for each kind of decision and each size of swarm."""
    report = await scheduler_bench(1, placed=(100, 200), routed=(100,))
    for kind, sizes in {"place": (100, 200), "join": (100, 200), "route": (100,)}.items():
        assert set(report[f"{kind}_ms"]) == set(sizes)
        assert all(0 < each["median"] <= each["worst"] for each in report[f"{kind}_ms"].values())
    assert set(report["share_of_goal"]) == {"place", "route"}


async def test_irreplaceable_hops_are_counted() -> None:
    """Of three peers that hold all layers none is replaceable; among thousands nearly all are."""
    report = await scheduler_bench(1, placed=(3,), routed=(3, 30, 3000))
    shares = list(report["replaceable"].values())
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
