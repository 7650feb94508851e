"""Names of models for people."""

import pytest

from p2pinfer.core.model_names import readable_name


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("Smollm2 135M 8k Lc100K Mix1 Ep2", "SmolLM2-135M-Instruct"),
        ("Meta Llama 3.1 8B Instruct", "Meta Llama 3.1 8B Instruct"),
        ("Qwen2.5-7B-Instruct.gguf", "Qwen2.5-7B-Instruct"),
        ("Qwen2.5-7B-Instruct-GGUF", "Qwen2.5-7B-Instruct"),
        (" my_own__model \n", "my own model"),
        ("12fd25f77366fa6b3b4b768ec3050bf629380bac", "unnamed model"),
        (".", "unnamed model"),
        ("", "unnamed model"),
    ],
)
def test_names_are_what_people_call_a_model(written: str, shown: str) -> None:
    """Known models by their usual name; others without a converter's leftovers."""
    assert readable_name(written) == shown
