"""The model without arithmetic: it answers the same wherever it is cut, and faults show."""

from itertools import islice, pairwise

import numpy as np
import pytest

from p2pinfer.core.regimes import Regime
from sim.model import MASK, ORIGIN, Cache, VirtualModel, link_of, pack

LAYERS = 12
MODEL = VirtualModel(LAYERS)
PROMPT = [5, 9, 2, 7, 7, 1]
ANSWER = list(islice(MODEL.answer(PROMPT), 4))


def embed(tokens: list[int], *, regime: Regime, after: list[int]) -> bytes:
    """Return the rows of tokens in front of the first layer."""
    links = [ORIGIN]
    for token in [*after, *tokens]:
        links.append(link_of(links[-1], token))
    links = links[len(after) :]
    return pack(np.array(links[:-1], np.uint64), np.array(links[1:], np.uint64))


def answer(bounds: tuple[int, ...], *, regime: Regime = Regime.WIDE) -> list[int]:
    """Answer the prompt with a model cut at the bounds."""
    caches = [Cache(MODEL, *each) for each in pairwise(bounds)]
    tokens, rows, position, found = list(PROMPT), b"", 0, []
    rows = embed(PROMPT, regime=regime, after=[])
    for _ in ANSWER:
        for cache in caches:
            rows = pack(*cache.run(position, rows, regime=regime))
        own = np.frombuffer(rows, "<f4")[-4:].astype("<u2").view("<u8")[0]
        found.append(MODEL.pick(int(own), regime))
        position, regime = len(tokens), Regime.NARROW
        rows = embed([found[-1]], regime=Regime.NARROW, after=tokens)
        tokens.append(found[-1])
    return found


@pytest.mark.parametrize("bounds", [(0, 12), (0, 5, 12), (0, 1, 2, 11, 12)])
def test_honest_stages_give_the_right_answer_wherever_the_model_is_cut(
    bounds: tuple[int, ...],
) -> None:
    """The answer is known without any layers."""
    assert answer(bounds) == ANSWER


def test_a_layer_left_out_is_seen_at_once() -> None:
    """The first token is wrong already."""
    assert answer((0, 11))[0] != ANSWER[0]


def test_the_wrong_regime_is_seen() -> None:
    """A prompt that ran narrow gives another answer."""
    assert answer((0, 5, 12), regime=Regime.NARROW)[0] != ANSWER[0]


def test_a_prompt_in_blocks_has_the_same_answer() -> None:
    """So it is known without knowing how a requester splits its prompts."""
    assert answer((0, 5, 12), regime=Regime.BLOCK) == ANSWER


def test_a_block_that_one_stage_ran_wide_is_seen() -> None:
    """Every layer must run a row in the regime that is stated."""
    rows = embed(PROMPT, regime=Regime.BLOCK, after=[])
    rows = pack(*Cache(MODEL, 0, 5).run(0, rows, regime=Regime.WIDE))
    _, own = Cache(MODEL, 5, 12).run(0, rows, regime=Regime.BLOCK)
    assert MODEL.pick(int(own[-1]), Regime.BLOCK) != ANSWER[0]


def test_rows_that_fit_no_cache_give_noise() -> None:
    """A stage that lacks the positions before gives other rows, and keeps doing so."""
    whole, empty = Cache(MODEL, 3, 6), Cache(MODEL, 3, 6)
    tokens = PROMPT
    whole.run(0, embed(tokens, regime=Regime.WIDE, after=[]), regime=Regime.WIDE)
    empty.run(0, embed([4] * len(tokens), regime=Regime.WIDE, after=[]), regime=Regime.WIDE)
    for token in (8, 3):
        rows = embed([token], regime=Regime.NARROW, after=tokens)
        position = len(tokens)
        good = whole.run(position, rows, regime=Regime.NARROW)[1]
        bad = empty.run(position, rows, regime=Regime.NARROW)[1]
        assert good[0] != bad[0]
        tokens = [*tokens, token]


def test_what_is_dropped_leaves_no_trace() -> None:
    """After noise at some position, going back to before it gives the right rows again."""
    cache, fresh = Cache(MODEL, 3, 6), Cache(MODEL, 3, 6)
    rows = embed(PROMPT, regime=Regime.WIDE, after=[])
    right = fresh.run(0, rows, regime=Regime.WIDE)[1]
    cache.run(0, embed([1, 1], regime=Regime.WIDE, after=[]), regime=Regime.WIDE)
    cache.run(2, embed(PROMPT[2:], regime=Regime.WIDE, after=PROMPT[:2]), regime=Regime.WIDE)
    again = cache.run(0, rows, regime=Regime.WIDE)[1]
    assert (again == right).all()


def test_keys_add_up() -> None:
    """A stage adds the keys of its own layers, and no others."""
    before, own = Cache(MODEL, 3, 6).run(
        0, embed([7], regime=Regime.NARROW, after=[]), regime=Regime.NARROW
    )
    link = link_of(ORIGIN, 7)
    added = MODEL.sum(6, regime=Regime.NARROW) - MODEL.sum(3, regime=Regime.NARROW)
    assert int(before[0]) == ORIGIN
    assert int(own[0]) == (link + added) & MASK
