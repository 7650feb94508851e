"""Log-probabilities of tokens, from the logits that they were drawn from."""

import numpy as np
from numpy.typing import NDArray

LOGPROB_MIN = -9999.0
"""OpenAI's value for "not likely at all", where the logarithm is not finite."""


def log_probabilities(logits: NDArray[np.float32], token: int, top: int) -> list[tuple[int, float]]:
    """Return a token and its log-probability, then those of the ``top`` likeliest in order.

    Args:
        logits: one row of the vocabulary's size, as the head gives them.
        token: the one that was drawn; it may be among the likeliest too.
        top: how many; equally likely ones are ordered by their ids.
    """
    row = logits.reshape(-1).astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    np.maximum(row, LOGPROB_MIN, out=row)
    found = [token, *_likeliest(row, min(top, row.size))]
    return [(each, float(row[each])) for each in found]


def _likeliest(row: NDArray[np.float64], count: int) -> list[int]:
    """Return the indices of the largest values in order, without sorting a whole vocabulary."""
    if not count:
        return []
    least = np.partition(row, -count)[-count]
    places = np.flatnonzero(row >= least)
    order = np.argsort(-row[places], kind="stable")[:count]
    return [int(each) for each in places[order]]
