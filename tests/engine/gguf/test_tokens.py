"""Whether a draft model's tokens are the large model's."""

from pathlib import Path

import pytest

from p2pinfer.engine.gguf.model_header import PADDING_TOKENS_MAX, have_same_tokens
from p2pinfer.engine.gguf.reader import read_header
from tests.support.vocabularies import write_vocabulary

ENDS = ["<s>", "</s>"]


@pytest.mark.parametrize(
    ("control", "are_same"),
    [
        (ENDS, True),
        ([*ENDS, "<pad>"], True),
        ([*ENDS, *(f"<pad{number}>" for number in range(PADDING_TOKENS_MAX))], True),
        ([*ENDS, *(f"<pad{number}>" for number in range(PADDING_TOKENS_MAX + 1))], False),
        (["</s>", "<s>"], False),
    ],
)
def test_only_padding_may_differ(tmp_path: Path, control: list[str], are_same: bool) -> None:
    """Either model may be the padded one."""
    one = read_header(write_vocabulary(tmp_path / "one.gguf", ENDS))
    other = read_header(write_vocabulary(tmp_path / "other.gguf", control))
    assert have_same_tokens(one, other) is are_same
    assert have_same_tokens(other, one) is are_same
