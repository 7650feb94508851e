"""The results of a run: for people on a terminal, and as JSON and CSV."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attrs import evolve

from sim.run import Outcome, undialable_share
from sim.scenario import ExpectTable, Scenario
from sim.toml_schema import Spread

VIOLATIONS_SHOWN_MAX = 10


def summary(outcome: Outcome) -> dict[str, Any]:
    """Return a run's numbers."""
    record, scenario = outcome.record, outcome.scenario
    asked = [question for question in record.questions if not question.is_last]
    settled = [sample for sample in record.samples if sample.at_s >= scenario.settle_s]
    gossip = [size / outcome.virtual_s for size in outcome.gossip_bytes]
    return {
        "about": scenario.about,
        "seed": scenario.seed,
        "digest": record.digest,
        "peers": scenario.peer_count,
        "virtual_s": round(outcome.virtual_s, 1),
        "wall_s": round(outcome.wall_s, 1),
        "cpu_s": round(outcome.cpu_s, 1),
        "messages": outcome.messages,
        "questions": len(asked),
        "outcomes": dict(sorted(Counter(question.outcome for question in asked).items())),
        "tokens": record.events["token"],
        "first_token_s": spread_of([q.first_s for q in asked]),
        "tokens_per_s": spread_of([q.tokens_per_s for q in asked]),
        "drafts_kept": sum(q.drafts_kept for q in asked),
        "drafts_dropped": sum(q.drafts_dropped for q in asked),
        "tokens_per_trip": spread_of([q.tokens_per_trip for q in asked]),
        "longest_gap_s": spread_of([q.longest_gap_s for q in asked if q.tokens > 1]),
        "stages": spread_of([float(q.stages) for q in asked if q.stages]),
        "covered": round(outcome.covered, 4),
        "least_holders": min((s.least_holders for s in settled), default=0),
        "joined": record.events["join"],
        "killed": record.events["kill"],
        "left": record.events["leave"],
        "began_to_serve": record.events["serve"],
        "undialable": sum(round(g.undialable * g.count) for g in scenario.peers),
        "sessions_by_dialable": outcome.served.get(True, 0),
        "sessions_by_undialable": outcome.served.get(False, 0),
        "layer_rows_by_undialable": round(undialable_share(outcome), 4),
        "token_s": spread_of([1 / q.tokens_per_s for q in asked if q.tokens_per_s]),
        "connections": outcome.ways,
        "relayed_mb": round(outcome.relayed_bytes / 1e6, 3),
        "relays_killed": record.events["relay killed"],
        "lies": outcome.lies,
        "receipts_joined_up": record.events["settled"] - record.events["breaks"],
        "receipts_broke": record.events["breaks"],
        "audits": record.events["audits"],
        "caught": record.events["caught"],
        "proved": record.events["proved"],
        "caught_by_rows": record.events["caught by rows"],
        "first_caught_s": min(record.caught_s, default=None),
        "framed": record.events["framed"],
        "proven": record.events["proven"],
        "gossip_bytes_per_s": spread_of(gossip),
        "sent_mb": {kind: round(size / 1e6, 3) for kind, size in outcome.sent.items()},
        "warnings": record.log,
        "violations": [asdict(violation) for violation in record.violations],
    }


def _when(numbers: dict[str, Any]) -> str:
    first_s = numbers["first_caught_s"]
    return "at no time" if first_s is None else f"{first_s:.0f} s after the start"


def all_public(scenario: Scenario) -> Scenario:
    """Return the same scenario as if others could dial every peer."""
    groups = tuple(evolve(group, undialable=0.0) for group in scenario.peers)
    return evolve(scenario, peers=groups, expect=ExpectTable())


def beside(numbers: dict[str, Any], public: dict[str, Any]) -> dict[str, Any]:
    """Return a run's numbers with those of `all_public` beside them: how much NATs cost."""
    here, there = numbers["token_s"], public["token_s"]
    ratio = round(here["median"] / there["median"], 3) if here and there else None
    kept = {name: public[name] for name in ("outcomes", "token_s", "first_token_s", "digest")}
    return numbers | {"all_public": kept, "token_s_ratio": ratio}


def without_drafts(scenario: Scenario) -> Scenario:
    """Return the same scenario as if no requester sent anything ahead."""
    requests = evolve(scenario.requests, agreement=Spread(0, 0))
    return evolve(scenario, requests=requests, expect=ExpectTable())


def beside_drafts(numbers: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return a run's numbers with those of `without_drafts` beside them: what drafts bring."""
    here, there = numbers["token_s"], plain["token_s"]
    times = round(there["median"] / here["median"], 3) if here and there else None
    kept = {name: plain[name] for name in ("outcomes", "token_s", "stages", "digest")}
    return numbers | {"plain": kept, "drafts_times": times}


def spread_of(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return median and extremes; None if there are no values."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None

    def at(share: float) -> float:
        return round(known[min(len(known) - 1, int(share * len(known)))], 4)

    return {"p5": at(0.05), "median": at(0.5), "p95": at(0.95), "most": at(1)}


def lines(numbers: dict[str, Any]) -> list[str]:
    """Format the numbers for a terminal."""
    outcomes = ", ".join(f"{count} {name}" for name, count in numbers["outcomes"].items())
    covered, least = f"{numbers['covered']:.1%}", numbers["least_holders"]
    made = numbers["connections"]
    connections = ", ".join(f"{made[name]:,} {name}" for name in made) or "nobody hidden was called"
    joined_up, broke = numbers["receipts_joined_up"], numbers["receipts_broke"]
    told = {
        "peers": f"{numbers['peers']}, {numbers['joined']} joined in total,"
        f" {numbers['killed']} killed, {numbers['left']} left",
        "layers": f"all served {covered} of the time, the rarest by {least} at worst;"
        f" {numbers['began_to_serve']} ranges taken up",
        "questions": f"{numbers['questions']}: {outcomes or 'none'}",
        "sessions": f"{numbers['sessions_by_dialable']} at peers that can be dialled,"
        f" {numbers['sessions_by_undialable']} at the {numbers['undialable']} that cannot",
        "work": f"{numbers['layer_rows_by_undialable']:.1%} of the layer-rows by those that cannot",
        "reached": f"{connections}; relays carried {numbers['relayed_mb']:,.1f} MB,"
        f" {numbers['relays_killed']} were killed",
        "first token": _shown(numbers["first_token_s"], "s"),
        "speed": _shown(numbers["tokens_per_s"], "tokens/s"),
        "per token": _shown(numbers["token_s"], "s"),
        "stalls": _shown(numbers["longest_gap_s"], "s") + ", the longest of each answer",
        "receipts": f"joined up {joined_up} times, broke {broke} times;"
        f" {numbers['lies']} lies told",
        "audits": f"{numbers['audits']}, of which {numbers['caught']} caught a cheat"
        f" and {numbers['framed']}, by a majority of cheats, blamed an honest peer;"
        f" peers found {numbers['proven']} proofs to hold",
        "opened rows": f"held {numbers['proved']} times, and were false"
        f" {numbers['caught_by_rows']} times; the first cheat was caught {_when(numbers)}",
        "gossip": _shown(numbers["gossip_bytes_per_s"], "bytes/s") + ", by peer",
        "simulated": f"{numbers['virtual_s']:.0f} s in {numbers['wall_s']:.1f} s"
        f" ({numbers['cpu_s']:.1f} s of one core),"
        f" {numbers['messages']:,} messages",
        "digest": numbers["digest"],
    }
    if numbers["drafts_kept"] or numbers["drafts_dropped"]:
        told["drafts"] = (
            f"{numbers['drafts_kept']:,} tokens as drafted, {numbers['drafts_dropped']:,} rows in"
            f" vain; {_shown(numbers['tokens_per_trip'], 'tokens per trip')}"
        )
    if "plain" in numbers:
        times = numbers["drafts_times"]
        told["drafts give"] = (
            f"{'nothing to compare' if times is None else f'{times:.2f} times'} the tokens of the"
            f" same world without them ({_shown(numbers['plain']['token_s'], 's')} per token)"
        )
    if "all_public" in numbers:
        ratio, outcomes = numbers["token_s_ratio"], numbers["all_public"]["outcomes"]
        told["NATs cost"] = (
            f"{'nothing to compare' if ratio is None else f'{ratio:.2f} times'} the time of a token"
            f" in the same world without NATs ({_shown(numbers['all_public']['token_s'], 's')};"
            f" {', '.join(f'{count} {name}' for name, count in outcomes.items())})"
        )
    violations = numbers["violations"]
    more = len(violations) - VIOLATIONS_SHOWN_MAX
    return [
        numbers["about"],
        *(f"{name:12}{text}" for name, text in told.items()),
        *(
            f"VIOLATED    {each['check']} at {each['at_s']} s: {each['text']}"
            for each in violations[:VIOLATIONS_SHOWN_MAX]
        ),
        *([f"            and {more} more"] if more > 0 else []),
    ]


def _shown(spread: dict[str, float] | None, unit: str) -> str:
    if spread is None:
        return "nothing"
    low, high = spread["p5"], spread["p95"]
    return f"{spread['median']:,.4g} {unit} median, {low:,.4g} to {high:,.4g} in 9 of 10"


def write_files(outcome: Outcome, folder: Path) -> None:
    """Write everything as JSON and CSV; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(summary(outcome), indent=2) + "\n")
    _write_rows(folder / "questions.csv", [asdict(q) for q in outcome.record.questions])
    samples = [asdict(sample) for sample in outcome.record.samples]
    _write_rows(folder / "samples.csv", [s | {"held": len(s["held"])} for s in samples])
    held = [
        {"at_s": sample.at_s, "peer": peer, "first": layers.first, "end": layers.end}
        for sample in outcome.record.samples
        for peer, layers in sample.held.items()
    ]
    _write_rows(folder / "held.csv", held)


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
