"""The dashboard in docs/ asks for metrics and labels that a gateway has, and shows all of them."""

import json
import re
from pathlib import Path
from typing import Any

from attrs import evolve
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from p2pinfer.core.trust import Audited, AuditVerdict, Trust
from tests.support.fake_gateway import fake_gateway, http
from tests.support.swarm import PEERS

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
NAME = re.compile(r"\bp2pinfer_[a-z_]+")
LABELS = re.compile(r"by \(([a-z_, ]+)\)|([a-z_]+)=~?\"")
SET_BY_PROMETHEUS = {"job"}


def queries() -> list[str]:
    """Return what the panels and variables ask Prometheus for."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [each["query"] for each in dashboard["templating"]["list"]]
    return found + [each["query"] for each in variables if isinstance(each, dict)]


async def test_every_name_is_a_metric_of_the_gateway(
    prompts: list[str], autojump_clock: MockClock
) -> None:
    """And every metric is on a panel; labels exist, and so do the values that are named."""
    audit = Audited(PEERS[0], 1, 9, AuditVerdict.SAME)
    async with fake_gateway() as (_, client, app), http(app) as ask:
        client.trust = evolve(Trust(3, 9, 0.1), audits=(audit,))
        for prompt in ("Hi there you", "Hi there you"):
            await ask.post("/v1/completions", json={"model": "default", "prompt": prompt})
        page = (await ask.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(page) for s in family.samples]
    has = {sample.name for sample in samples if not sample.name.endswith("_created")}
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert asked <= has
    shown = {name.removesuffix("_bucket") for name in asked}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in has} <= shown
    for query in queries():
        names = set(NAME.findall(query))
        labels = {label for s in samples if s.name in names for label in s.labels}
        for listed, compared in LABELS.findall(query):
            wanted = {each.strip() for each in (listed or compared).split(",")}
            assert wanted - SET_BY_PROMETHEUS <= labels, query
        for label, value in re.findall(r'([a-z_]+)="([a-z]+)"', query):
            assert any(s.labels.get(label) == value for s in samples if s.name in names), query


def test_it_works_with_any_source() -> None:
    """The person picks Prometheus and the job when importing it; panels do not overlap."""
    dashboard = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
    assert all('job=~"$job"' in query or query.startswith("label_values") for query in queries())
