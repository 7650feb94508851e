"""What the sampler needs of that which an answer keeps to."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenFilter(Protocol):
    """What an answer keeps to."""

    def allowed(self) -> NDArray[np.bool_]:
        """Say of each token whether it may follow; raises EngineError."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind a token; raises EngineError."""
        ...
