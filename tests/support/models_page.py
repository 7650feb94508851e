"""The tables of docs/models.md, from the rules by which models are cut."""

from collections.abc import Iterator

from p2pinfer.engine.gguf.architectures import RULES, Rules
from p2pinfer.engine.gguf.refused import REFUSED


def _said(rules: Rules) -> Iterator[str]:
    """Yield how a slice differs from the whole model, besides in its number of layers."""
    if rules.windows:
        yield "which of its layers are windowed"
        if rules.windows.in_zeros:
            yield "a windowed layer of zeros, where it has none"
        elif not rules.windows.optional:
            yield "a windowed block that never runs, where it has no windowed layer"
    if rules.period > 1:
        yield f"layers of zeros in front, where it does not begin at a multiple of {rules.period}"
    if rules.whole_period:
        yield "and behind, where it ends before one"
    if rules.blocks_min > 1:
        yield "a block that never runs, where it has one layer"
    if rules.dense_lead:
        yield "how many of its layers are dense"
    if rules.scales_embeddings:
        yield "rows are not scaled as embeddings"
    if rules.head_everywhere:
        yield "a head of zeros"
    if rules.rope_of_full_layers:
        yield "rope frequencies only where a layer sees everything"
    if rules.is_hybrid:
        yield "which of its layers keep a state; a layer of zeros, where it has none of a kind"
    if rules.rows_into:
        yield "rows are written over the embeddings of dummy tokens"
    if rules.left_out:
        yield "nothing of pictures"
    if rules.derived:
        yield "what llama.cpp takes from the whole model's number of layers"


def _limits(rules: Rules) -> str:
    refused = [f"where {reason}" for _, reason in rules.only_at.values()]
    if rules.whole_period:
        refused.append(f"where its number of layers is no multiple of {rules.period}")
    return "; ".join(refused)


def _row(name: str, rules: Rules) -> str:
    said = "; ".join(_said(rules)) or "in nothing but its layers"
    cells = (f"`{name}`", rules.models, said, _limits(rules))
    return f"| {' | '.join(cells)} |"


def render() -> str:
    """Return the generated part of the page."""
    lines = [
        f"## {len(RULES)} architectures split exactly",
        "",
        "| architecture | models | how a slice differs from the whole | refused |",
        "|---|---|---|---|",
        *(_row(name, RULES[name]) for name in sorted(RULES)),
        "",
        "## What is refused, and why",
        "",
        "| architecture | because |",
        "|---|---|",
        *(f"| `{name}` | {REFUSED[name]} |" for name in sorted(REFUSED)),
        "",
        "Any other is refused because it is not proven to compute the same when it is cut.",
    ]
    return "\n".join(lines)
