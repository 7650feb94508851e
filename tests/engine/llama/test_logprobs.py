"""Log-probabilities equal those of the softmax, whatever the logits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from p2pinfer.engine.llama.logprobs import LOGPROB_MIN, log_probabilities

logits_lists = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40)


@given(logits_lists, st.data())
def test_log_probabilities_equal_the_softmaxs(logits: list[float], data: st.DataObject) -> None:
    """The drawn token's, then the likeliest in order; equal ones by id."""
    token = data.draw(st.integers(0, len(logits) - 1))
    top = data.draw(st.integers(0, 20))
    row = np.array([logits], np.float32)
    expected = np.maximum(log_softmax(row[0].astype(np.float64)), LOGPROB_MIN)
    (drawn, own), *likeliest = log_probabilities(row, token, top)
    assert drawn == token
    assert own == pytest.approx(expected[token], abs=1e-9)
    assert len(likeliest) == min(top, len(logits))
    order = sorted(range(len(logits)), key=lambda at: (-expected[at], at))
    assert [expected[at] for at, _ in likeliest] == [expected[at] for at in order[:top]]
    assert [p for _, p in likeliest] == pytest.approx([expected[at] for at, _ in likeliest])


def test_an_impossible_token_has_a_finite_value() -> None:
    """JSON has no infinity."""
    row = np.array([[0.0, -np.inf]], np.float32)
    assert log_probabilities(row, 0, 2) == [(0, 0.0), (0, 0.0), (1, LOGPROB_MIN)]
