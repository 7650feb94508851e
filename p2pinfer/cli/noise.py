"""The options of noise that hides lessons, and what it promises in words."""

import math
from typing import Annotated

from p2pinfer.cli.options import option
from p2pinfer.cli.sizes import check_range

NOISE_CLIP = 0.4
"""About the norm that a lesson's gradient has at first, with the default model."""
NOISE_CLIP_MIN, NOISE_CLIP_MAX = 1e-6, 1e6
NOISE_MIN, NOISE_MAX = 1e-3, 1e6

NoiseClip = Annotated[
    float,
    option("noise-clip", "With noise, each lesson's gradient is scaled down to this norm."),
]


def check_noise(multiplier: float, clip: float) -> None:
    """Raise UserError if one is out of range."""
    check_range("noise", multiplier, NOISE_MIN, NOISE_MAX)
    check_range("noise-clip", clip, NOISE_CLIP_MIN, NOISE_CLIP_MAX)


def promise(epsilon: float, delta: float) -> str:
    """Say what noise promises for each lesson."""
    if math.isinf(epsilon):
        return "so little noise promises nothing: choose a larger --noise, or fewer --passes"
    return f"noise hides each lesson: epsilon {epsilon:.2f} at delta {delta:g}"


def epsilon_said(epsilon: float | None) -> float | None:
    """Return an epsilon as JSON can have it: null where nothing is promised."""
    return None if epsilon is None or math.isinf(epsilon) else round(epsilon, 4)
