"""How benchmarks evaluate their measurements."""

import random

import pytest

from p2pinfer.bench.answers import QUESTIONS, WAYS, find_ways, first_sentence, is_right
from p2pinfer.bench.evidence import median_interval
from p2pinfer.bench.opened_zoo import OPENED_ZOO, find_opened
from p2pinfer.bench.zoo import ZOO, find_cheats
from p2pinfer.core.errors import UserError


def test_the_interval_of_a_median_is_by_ranks() -> None:
    """It matches the tables of the sign test."""
    for count, bounds in ((6, (1, 6)), (9, (2, 8)), (30, (10, 21)), (100, (40, 61))):
        assert median_interval(list(range(count, 0, -1))) == bounds
    assert median_interval([3.0]) == (3.0, 3.0)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """For skewed values too: in at least 95 of 100 samples, and not always."""
    chance, true = random.Random(1), 0.6931
    held = 0
    for _ in range(1000):
        low, high = median_interval([chance.expovariate(1.0) for _ in range(40)])
        held += low <= true <= high
    assert 945 <= held < 1000


RIGHT = {each.text: each for each in QUESTIONS}


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        ("What is the capital of France?", "The capital of France is Paris. It is old.", True),
        ("What is the capital of France?", " Paris", True),
        ("What is the capital of France?", "It is large.\nParis is the capital.", False),
        ("What is the capital of France?", "La capitale de la France est Paris.", False),
        ("What is the capital of France?", "Parisian.", False),
        ("What do bees make?", "Bees make HONEY, and wax!", True),
        ("How many days are in a week?", "A week has 70 days.", False),
        ("How many days are in a week?", "A week has 7 days.", True),
        ("Quelle est la capitale de l'Italie ?", "La capitale de l'Italie est Rome.", True),
        ("Quelle est la capitale de l'Italie ?", "The capital of Italy is Rome.", False),
        ("Welche Farbe hat Schnee?", "Schnee ist weiß.", True),
    ],
)
def test_an_answer_is_right_by_its_first_sentence_and_language(
    question: str, answer: str, right: bool
) -> None:
    """A whole word, before the first full stop, in the question's language."""
    assert is_right(RIGHT[question], answer) is right


def test_the_end_of_the_first_sentence() -> None:
    """Not in the middle of a number; also at the end of a line."""
    assert first_sentence("It is 3.5 m. Or so.") == "It is 3.5 m."
    assert first_sentence("\nOne\nTwo.") == "One"
    assert first_sentence("") == ""


def test_ways_and_cheats_are_found_by_name() -> None:
    """All of them if none is named, and a sentence if one is unknown."""
    assert find_ways([]) == dict(WAYS)
    assert list(find_ways(["t1", "greedy"])) == ["t1", "greedy"]
    assert find_cheats([]) == list(ZOO)
    assert find_opened([]) == list(OPENED_ZOO)
    assert {each.name for each in ZOO if each.open} < {each.name for each in OPENED_ZOO}
    with pytest.raises(UserError, match="'none', only: lower"):
        find_opened(["none"])
    with pytest.raises(UserError, match="'cold', only: greedy"):
        find_ways(["cold"])
    with pytest.raises(UserError, match="'none', only: lower"):
        find_cheats(["none"])
