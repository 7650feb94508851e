"""The tokenizer process: hostile and huge texts, and control tokens spelled by people."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.errors import BadModelFile, PromptTooLong, UserError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.llama.binding import Vocabulary
from p2pinfer.engine.llama.engine import open_ends
from p2pinfer.engine.llama.tokenizer import STACK_BYTES, STACK_BYTES_MAX, Tokenizer, _Vocabulary
from p2pinfer.engine.special_tokens import Spellings
from tests.support.tiny_models import tiny_model
from tests.support.vocabularies import write_sentencepiece, write_vocabulary
from tests.support.whole import open_model

CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "<|")
RECURSING = ("tekken", "gpt-4o", "deepseek-llm", "deepseek-v3", "deepseek-coder")
"""Pre-tokenisers whose regular expressions recurse once per character."""

WAIT_S_MAX = 120


@asynccontextmanager
async def opened(path: Path, stack_bytes_max: int = STACK_BYTES_MAX) -> AsyncIterator[Tokenizer]:
    """Run a tokenizer with a given stack size."""
    tokenizer = Tokenizer(path, stack_bytes_max)
    try:
        with trio.fail_after(WAIT_S_MAX):
            yield tokenizer
    finally:
        await tokenizer.helper.end()


@pytest.mark.parametrize("pre", RECURSING)
async def test_long_runs_of_one_letter_are_tokenised(pre: str, tmp_path: Path) -> None:
    """30,000 letters overflow a default stack; 400,000 fit in ours, and are refused as too long."""
    path = write_vocabulary(tmp_path / "v.gguf", CONTROL, pre=pre, pairs=["aa"])
    async with opened(path) as tokenizer:
        found = await tokenizer.tokenize("a" * 30_000, special=True, most=15_000)
        assert found == [256] * 15_000
        with pytest.raises(PromptTooLong, match="200000 tokens, and a session holds 4096"):
            await tokenizer.tokenize("a" * 400_000, special=True, most=4096)


async def test_a_crash_costs_one_question(tmp_path: Path) -> None:
    """Its caller gets an error; a new process answers those that wait."""
    path = write_vocabulary(tmp_path / "v.gguf", CONTROL, pre="tekken", pairs=["aa"])
    told: list[Any] = []

    async def ask(text: str) -> None:
        try:
            told.append(await tokenizer.tokenize(text, special=True))
        except UserError as error:
            told.append(str(error))

    async with opened(path, STACK_BYTES) as tokenizer:
        assert await tokenizer.tokenize("Hi", special=True) == [72, 105]
        first = tokenizer.helper._process
        async with trio.open_nursery() as nursery:
            for text in ("a" * 400_000, "Hi", "a" * 30_000, "Hi"):
                nursery.start_soon(ask, text)
        second = tokenizer.helper._process
    assert told.count([72, 105]) == 2
    refused = [each for each in told if each != [72, 105]]
    assert len(refused) == 2
    assert all("tokenizer ended on signal 11): break up long runs" in each for each in refused)
    assert first is not second


async def test_a_tokenizer_crash_does_not_disturb_answers(
    default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is not involved, so a session keeps its cells and draws the same tokens."""
    crashing = write_vocabulary(tmp_path / "v.gguf", CONTROL, pre="tekken", pairs=["aa"])
    first, last = open_model(default_model, tmp_path).ends(1)
    async with open_ends(first, last, 30, sessions=1, context=256) as ends:
        tokens = await ends.tokenize("Count to ten:", special=True)

        async def draw() -> list[int]:
            cells = ends.open()
            cells.start(Sampling(), tokens)
            rows = (await cells.embed(0, tokens, regime=Regime.WIDE)).rows
            at, drawn = 0, []
            for _ in range(20):
                found = await cells.next(at, rows, regime=Regime.NARROW if at else Regime.WIDE)
                drawn.append(found.token)
                at, rows = at + (len(tokens) if at == 0 else 1), found.rows
                if asked and not told:
                    beside.append(found.token)
            cells.close()
            return drawn

        asked: list[str] = []
        told: list[str] = []
        beside: list[int] = []
        alone = await draw()
        async with opened(crashing, STACK_BYTES) as tokenizer:
            monkeypatch.setattr(ends, "_tokenizer", tokenizer)
            await ends.tokenize("Hi", special=True)  # it has loaded

            async def crash() -> None:
                asked.append("a" * 400_000)
                with pytest.raises(UserError, match="ended on signal 11") as caught:
                    await ends.tokenize(asked[0], special=True)
                told.append(str(caught.value))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(crash)
                assert await draw() == alone
        assert told
        assert beside, "no token was drawn while the tokenizer was working"
        assert ends.worker.generation == 1


async def test_a_slow_tokenizer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next question is answered."""
    path = write_vocabulary(tmp_path / "v.gguf", CONTROL)
    async with opened(path) as tokenizer:
        monkeypatch.setattr(tokenizer.helper, "_answer_s_max", 0.0)
        with pytest.raises(UserError, match="tokenizer took too long"):
            await tokenizer.tokenize("Hi", special=True)
        monkeypatch.undo()
        assert await tokenizer.tokenize("Hi", special=True) == [72, 105]


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    """The message gives llama.cpp's reason."""
    with pytest.raises(BadModelFile, match="cannot load"):
        Vocabulary.of_file(tmp_path / "none.gguf")


def test_a_space_may_be_three_tokens(tmp_path: Path) -> None:
    """SentencePiece writes it in three bytes, for which a small vocabulary has no word."""
    vocabulary = Vocabulary.of_file(tiny_model(tmp_path, "llama", "Q4_0"))
    assert len(vocabulary.tokenize(50 * "! ", special=False)) == 3 * 51 + 50


def loaded(path: Path) -> _Vocabulary:
    """Load a vocabulary into this process."""
    return _Vocabulary(Vocabulary.of_file(path), STACK_BYTES)


def tokens_of(vocabulary: _Vocabulary, text: str, literal: list[int]) -> list[int]:
    """Return a text's tokens as the process finds them."""
    _, raw = vocabulary.answer(["tokenize", text, True, literal, None])
    return list(memoryview(raw).cast("i"))


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> list[_Vocabulary]:
    """Load one of each kind, and one whose control tokens swallow the space after them."""
    folder = tmp_path_factory.mktemp("vocabularies")
    return [
        loaded(write_vocabulary(folder / "bytes.gguf", CONTROL, adds_bos=True)),
        loaded(write_sentencepiece(folder / "pieces.gguf")),
        loaded(write_sentencepiece(folder / "strips.gguf", name="Phi-3 toy")),
    ]


PIECES = (*CONTROL, "<|user|>", "<|end|>", "<unk>", "ab", " a", "  ", "\n", "é", "|", "im_end|>")


@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_texts_are_cut_at_control_tokens_as_by_llama_cpp(
    vocabularies: list[_Vocabulary], text: str
) -> None:
    """For every kind of vocabulary, if nothing is literal."""
    nowhere = [-1]
    for each in vocabularies:
        assert tokens_of(each, text, nowhere) == tokens_of(each, text, [])


def test_literal_spellings_are_text(vocabularies: list[_Vocabulary]) -> None:
    """They are tokenised like the text around them; other spellings stay control tokens."""
    text = "a<|end|>b<|end|>"
    assert (
        tokens_of(vocabularies[1], text, [1])
        == [
            1,  # <s>
            *(tokens_of(vocabularies[1], "a<|", [])[1:]),
            *(259 + 1 + ord(letter) - ord("a") for letter in "end"),
            *(3 + ord(letter) for letter in "|>"),
            259 + 2,
            259 + 31,
        ]
    )


@pytest.mark.parametrize("text", ["", "plain", "<", "<|", "a<|im_end|>b", "<|im_end|><|im_end|>"])
def test_spellings_are_found_as_by_brute_force(text: str) -> None:
    """The longest at each place, also where they overlap; whitespace spells nothing."""
    expected = []
    for at in range(len(text)):
        found = [token for token in CONTROL if text.startswith(token, at)]
        expected += [(at, max(found, key=len))] if found else []
    assert list(Spellings([*CONTROL, " ", "\n"]).find(text)) == expected
