"""Log-probabilities of tokens, from the logits that they were drawn from."""

import numpy as np
from numpy.typing import NDArray

LOGPROB_MIN = -9999.0
"""OpenAI's word for "not likely at all", where the logarithm is no finite number."""


def log_probabilities(logits: NDArray[np.float32], token: int, top: int) -> list[tuple[int, float]]:
    """Return a token and its log-probability, then those of the ``top`` likeliest in order.

    Args:
        logits: one row of the vocabulary's size, as the head gives them.
        token: the one that was drawn; it may be among the likeliest, too.
        top: how many; of equally likely ones, those with the lower numbers come first.
    """
    row = logits.reshape(-1).astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    np.maximum(row, LOGPROB_MIN, out=row)
    order = np.argsort(-row, kind="stable")[:top] if top else ()
    return [(token, float(row[token])), *((int(each), float(row[each])) for each in order)]
