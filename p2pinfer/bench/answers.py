"""How good a model's answers are with various sampling settings: llama.cpp alone, in wide chunks.

An answer to a plain question is *right* if its first sentence contains the expected word, as a
whole word, and if no other language's function words are more frequent in it than those of the
question's language. A request without one right answer, such as for a story, counts only for
whether its answer *ends* by itself, which counts for every question too.
"""

import re
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import trio

from p2pinfer.core.errors import UserError
from p2pinfer.core.limits import NARROW_ROWS_MAX, WIDE_ROWS_MAX
from p2pinfer.core.sampling import sampling_of
from p2pinfer.engine.gguf.model_header import model_info
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.gguf.sampling_advice import DEFAULT_MODEL, TABLE
from p2pinfer.engine.llama.binding import Sampler, Settings, Slice, Span, Vocabulary
from p2pinfer.engine.special_tokens import SpecialTokens
from p2pinfer.engine.template import ChatTemplate, Message

SESSIONS: Final = NARROW_ROWS_MAX
"""Answers at once: up to this many rows have the same bits as a single row, as in a swarm."""

PROMPT_TOKENS_MAX: Final = 256
"""The longest question below, with any system message that a person would type."""


@dataclass(frozen=True)
class PlainQuestion:
    """A question, and a pattern of the word that its first sentence must contain; None: any."""

    text: str
    right: str | None
    language: str = "en"


QUESTIONS: Final = (
    PlainQuestion("What is the capital of France?", "paris"),
    PlainQuestion("What is the capital of Japan?", "tokyo"),
    PlainQuestion("What colour is the sky on a clear day?", "blue"),
    PlainQuestion("How many days are in a week?", "seven|7"),
    PlainQuestion("How many legs does a spider have?", "eight|8"),
    PlainQuestion("What is two plus two?", "four|4"),
    PlainQuestion("Who wrote Romeo and Juliet?", "shakespeare"),
    PlainQuestion("Which planet do we live on?", "earth"),
    PlainQuestion("What is the largest ocean on Earth?", "pacific"),
    PlainQuestion("What do bees make?", "honey"),
    PlainQuestion("What is the opposite of hot?", "cold"),
    PlainQuestion("At what temperature in Celsius does water boil?", "100|hundred"),
    PlainQuestion("What is the chemical formula of water?", "h2o|h₂o"),
    PlainQuestion("Who painted the Mona Lisa?", "vinci|leonardo"),
    PlainQuestion("Which animal barks?", "dogs?"),
    PlainQuestion("What is frozen water called?", "ice"),
    PlainQuestion("How many months are in a year?", "twelve|12"),
    PlainQuestion("Quelle est la capitale de l'Italie ?", "rome", "fr"),
    PlainQuestion("¿Cuántos días tiene una semana?", "siete|7", "es"),
    PlainQuestion("Welche Farbe hat Schnee?", "weiß|weiss|weiße[rs]?", "de"),
)

REQUESTS: Final = (
    PlainQuestion("Tell me a short story about a fox.", None),
    PlainQuestion("Explain how rain forms.", None),
    PlainQuestion("Write a Python function that adds two numbers.", None),
    PlainQuestion("Give me three tips for sleeping well.", None),
    PlainQuestion("Write a short poem about the sea.", None),
)

_FUNCTION_WORDS: Final[Mapping[str, frozenset[str]]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the is of and to in that it are with was for this which",
        "fr": "le la les est de des et un une du en que qui sont dans",
        "es": "el la los las es de y un una en que del son por",
        "de": "der die das ist und ein eine den von zu mit sind im nicht",
    }.items()
}

HELPFUL: Final = "You are a helpful assistant."
SHORT: Final = TABLE[DEFAULT_MODEL].system


@dataclass(frozen=True)
class Way:
    """Sampling settings, and the system message."""

    sampling: Mapping[str, float]
    system: str | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether an answer is the same whatever the seed."""
        return not self.sampling["temperature"]


_ALL: Final = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}

WAYS: Final[Mapping[str, Way]] = {
    "greedy": Way({"temperature": 0}),
    "greedy-helpful": Way({"temperature": 0}, HELPFUL),
    "greedy-short": Way({"temperature": 0}, SHORT),
    "greedy-short-penalty": Way({"temperature": 0, "repeat_penalty": 1.1}, SHORT),
    "t0.2-p0.9": Way({**_ALL, "temperature": 0.2, "top_p": 0.9}),
    "t0.2-p0.9-short": Way({**_ALL, "temperature": 0.2, "top_p": 0.9}, SHORT),
    "t0.2-m0.1-short": Way({**_ALL, "temperature": 0.2, "min_p": 0.1}, SHORT),
    "t0.4-m0.1-short": Way({**_ALL, "temperature": 0.4, "min_p": 0.1}, SHORT),
    "t0.4-m0.3-short": Way({**_ALL, "temperature": 0.4, "min_p": 0.3}, SHORT),
    "t0.7-m0.3-short": Way({**_ALL, "temperature": 0.7, "min_p": 0.3}, SHORT),
    "t0.7": Way({"temperature": 0.7}),
    "t0.7-penalty": Way({"temperature": 0.7, "repeat_penalty": 1.1}),
    "t0.7-short": Way({"temperature": 0.7}, SHORT),
    "t1": Way({**_ALL, "temperature": 1.0}),
}
"""The settings compared: t is the temperature, p top-p and m min-p (if neither is named: the usual
top-k 40, top-p 0.95 and min-p 0.05), *penalty* is 1.1 over 64 tokens, *helpful* and *short* are
system messages; short is the one recommended for the default model."""


@dataclass
class _Answer:
    """One answer, made token by token."""

    asked: PlainQuestion
    seed: int
    prompt: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    said: bytes = b""
    ended: bool = False
    """It ended by itself, not because it became too long."""

    @property
    def text(self) -> str:
        return self.said.decode(errors="replace")

    @property
    def is_right(self) -> bool:
        return is_right(self.asked, self.text)


async def answers_bench(
    model: Path, ways: Mapping[str, Way], *, seeds: int, tokens: int, questions: int
) -> dict[str, Any]:
    """Ask all questions in every way, and return what ``p2pinfer bench answers`` prints.

    Args:
        model: a whole GGUF file.
        ways: sampling settings by name.
        seeds: answers to each question with each way that is not greedy.
        tokens: the longest answer.
        questions: how many of the plain questions to ask, and the same share of the requests.

    Raises:
        BadModelFile, UnsupportedModel, UserError: the model cannot be asked.
    """
    requests = round(len(REQUESTS) * questions / len(QUESTIONS))
    asked = [*QUESTIONS[:questions], *REQUESTS[:requests]]

    def measure() -> dict[str, Any]:
        with_model = _Model(model, tokens)
        try:
            found = {
                name: _figures(with_model.answers(way, asked, 1 if way.is_greedy else seeds))
                for name, way in ways.items()
            }
        finally:
            with_model.close()
        return {
            "model": with_model.name,
            "questions": questions,
            "requests": requests,
            "seeds": seeds,
            "tokens_max": tokens,
            "ways": {
                name: {"sampling": dict(ways[name].sampling), "system": ways[name].system, **each}
                for name, each in found.items()
            },
        }

    return await trio.to_thread.run_sync(measure, abandon_on_cancel=True)


def find_ways(names: Sequence[str]) -> dict[str, Way]:
    """Return ways by name, all if none is named; raises UserError."""
    if unknown := [name for name in names if name not in WAYS]:
        raise UserError(f"--ways knows no {unknown[0]!r}, only: {', '.join(WAYS)}")
    return {name: WAYS[name] for name in names or WAYS}


def first_sentence(text: str) -> str:
    """Return a text up to its first full stop, question or exclamation mark, or end of line."""
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def is_right(asked: PlainQuestion, text: str) -> bool:
    """Whether an answer to a plain question is right, judged by its first sentence."""
    sentence = first_sentence(text).casefold()
    if not re.search(rf"\b(?:{asked.right})\b", sentence):
        return False
    words = re.findall(r"\w+", sentence)
    counts = {
        language: sum(word in common for word in words)
        for language, common in _FUNCTION_WORDS.items()
    }
    return counts[asked.language] == max(counts.values())


def _figures(answers: Sequence[_Answer]) -> dict[str, Any]:
    """Return the shares that are right and that end, and the first answer to each question."""
    plain = [each for each in answers if each.asked.right is not None]
    free = [each for each in answers if each.asked.right is None]
    seeds = {each.seed for each in plain}
    right = [statistics.mean(a.is_right for a in plain if a.seed == seed) for seed in seeds]
    return {
        "right": round(statistics.mean(right), 3),
        "right_of_each_seed": [round(share, 3) for share in right],
        "ended": round(statistics.mean(each.ended for each in plain), 3),
        "tokens": statistics.median(len(each.tokens) for each in plain),
        "requests_ended": round(statistics.mean(e.ended for e in free), 3) if free else None,
        "requests_tokens": statistics.median(len(e.tokens) for e in free) if free else None,
        "right_by_question": {
            text: round(statistics.mean(a.is_right for a in plain if a.asked.text == text), 3)
            for text in dict.fromkeys(each.asked.text for each in plain)
        },
        "said": {a.asked.text: first_sentence(a.text) for a in plain if a.seed == min(seeds)},
    }


class _Model:
    """A whole model in this process, which generates several answers at once."""

    def __init__(self, path: Path, tokens_max: int) -> None:
        info = model_info(read_header(path))
        self.name, self._tokens_max = info.name, tokens_max
        context = PROMPT_TOKENS_MAX + tokens_max
        self._whole = Slice(
            path, logits=True, settings=Settings(), sessions=SESSIONS, context=context
        )
        self._vocabulary = Vocabulary(self._whole.vocab)
        control = tuple(each.text for each in self._vocabulary.control_tokens())
        special = SpecialTokens(self._vocabulary.bos, self._vocabulary.eos, control)
        self._template = ChatTemplate(info.chat_template, special)

    def close(self) -> None:
        """Free the model's memory, and end the process that renders templates."""
        self._whole.close()
        trio.from_thread.run(self._template.end)

    def answers(self, way: Way, asked: Sequence[PlainQuestion], seeds: int) -> list[_Answer]:
        """Answer each question once with each seed."""
        prompts = [self._prompt(each.text, way.system) for each in asked]
        made = [
            _Answer(each, seed, prompt)
            for each, prompt in zip(asked, prompts, strict=True)
            for seed in range(1, seeds + 1)
        ]
        waiting = deque(made)
        live: dict[int, tuple[_Answer, Sampler]] = {}
        while waiting or live:
            for slot in set(range(SESSIONS)) - live.keys():
                if waiting:
                    live[slot] = self._begin(slot, waiting.popleft(), way)
            for slots in _adjacent(sorted(live)):
                self._next_tokens({slot: live[slot] for slot in slots})
            for slot, (answer, sampler) in list(live.items()):
                if answer.ended or len(answer.tokens) >= self._tokens_max:
                    sampler.close()
                    del live[slot]
        return made

    def _prompt(self, question: str, system: str | None) -> list[int]:
        messages: list[Message] = [{"role": "user", "content": question}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        prompt = trio.from_thread.run(self._template.render, messages)
        tokens = self._vocabulary.tokenize(prompt.text, special=True)
        begin = self._vocabulary.begins_with
        return tokens if tokens[: len(begin)] == begin else [*begin, *tokens]

    def _begin(self, slot: int, answer: _Answer, way: Way) -> tuple[_Answer, Sampler]:
        """Read a prompt, and draw the first token."""
        sampling = sampling_of(way.sampling, {"seed": answer.seed})
        sampler = Sampler(self._whole, sampling, answer.prompt)
        prompt, logits = answer.prompt, np.empty((0, 0), np.float32)
        self._whole.truncate(slot, 0)
        for at in range(0, len(prompt), WIDE_ROWS_MAX):
            chunk = np.array(prompt[at : at + WIDE_ROWS_MAX], np.int32)
            is_last = at + len(chunk) == len(prompt)
            (logits,) = self._whole.decode([Span(slot, at, chunk, is_last)])
        self._take(answer, sampler.sample(len(chunk) - 1, logits)[0])
        return answer, sampler

    def _next_tokens(self, live: Mapping[int, tuple[_Answer, Sampler]]) -> None:
        """Draw the next token of answers in adjacent slots."""
        active = [(slot, *each) for slot, each in live.items()]
        spans = [
            Span(slot, len(a.prompt) + len(a.tokens) - 1, np.array(a.tokens[-1:], np.int32))
            for slot, a, _ in active
        ]
        outputs = self._whole.decode(spans)
        for row, (_, answer, sampler) in enumerate(active):
            self._take(answer, sampler.sample(row, outputs[row])[0])

    def _take(self, answer: _Answer, token: int) -> None:
        answer.tokens.append(token)
        answer.ended = self._vocabulary.is_end(token)
        if not answer.ended:
            answer.said += self._vocabulary.piece(token)


def _adjacent(slots: Sequence[int]) -> Iterator[list[int]]:
    """Split ascending slots where one is missing: a decode takes only adjacent slots."""
    run: list[int] = []
    for slot in slots:
        if run and slot != run[-1] + 1:
            yield run
            run = []
        run.append(slot)
    if run:
        yield run
