"""Text to tokens, in a process of its own that has a model's vocabulary and nothing else.

llama.cpp splits text by regular expressions that recurse once a character: some 20,000 letters
without a space overflow a thread's usual stack. So the process gives long texts a large one, and
whatever ends it all the same ends one request, and no answer that is being made.
"""

import array
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pinfer.core.errors import PromptTooLong, UserError
from p2pinfer.core.sampling import GRAMMAR_CHARS_MAX
from p2pinfer.engine.helper_process import Helper, HelperEnded, answer_questions
from p2pinfer.engine.special_tokens import ControlToken, SpecialTokens, Spellings

if TYPE_CHECKING:  # llama.cpp is for the process alone
    from p2pinfer.engine.llama.binding import Vocabulary
    from p2pinfer.engine.llama.constraints import Grammars

TOKENIZE_S_MAX = 60
"""However busy the machine is; 400,000 characters take 0.4 s, and that is a hundred times more."""

STACK_BYTES = 8 << 20
"""What a thread has as a rule."""

STACK_BYTES_PER_CHAR = 512
"""llama.cpp takes some 400 a character where it recurses."""

STACK_BYTES_MAX = 256 << 20
"""Room for half a million characters without a break; only what is used is taken."""


_TROUBLE = (
    "this text cannot be made into tokens (llama.cpp's tokenizer {how}):"
    " break up long runs of characters that have no space between them"
)


class Tokenizer:
    """A model's tokenizer in a process of its own."""

    def __init__(self, path: Path, stack_bytes_max: int = STACK_BYTES_MAX) -> None:
        arguments = (str(path), str(stack_bytes_max))
        self.helper = Helper(
            "p2pinfer.engine.llama.tokenizer", *arguments, answer_s_max=TOKENIZE_S_MAX
        )
        self._special: SpecialTokens | None = None

    async def special_tokens(self) -> SpecialTokens:
        """Return what the vocabulary has of them; raises as ``tokenize``."""
        if self._special is None:
            bos, eos, control = await self._ask("special")
            self._special = SpecialTokens(bos, eos, tuple(control))
        return self._special

    async def tokenize(
        self, text: str, *, special: bool, literal: Sequence[int] = (), most: int | None = None
    ) -> list[int]:
        """Return a text's tokens, with what every text begins with in front unless it is there.

        Args:
            text: of characters that UTF-8 can write.
            special: take what spells a control token for one.
            literal: where such spellings begin that are text in spite of ``special``.
            most: more tokens than that are of no use.

        Raises:
            PromptTooLong: there are more than ``most``.
            UserError: llama.cpp cannot do it, or crashed at it, or took too long.
        """
        count, raw = await self._ask("tokenize", text, special, list(literal), most)
        if raw is None:
            assert most is not None
            raise PromptTooLong(f"{count} tokens", most)
        tokens = array.array("i")
        tokens.frombytes(raw)
        return tokens.tolist()

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token stands for, control tokens included."""
        (found,) = await self._ask("pieces", list(tokens))
        return list(found)

    async def read_grammar(self, text: str, *, is_gbnf: bool = False) -> str:
        """Return a grammar, translated if it is in GBNF, that an answer can be held to.

        Raises:
            UserError: it cannot be read, or takes too much work.
        """
        if len(text) > GRAMMAR_CHARS_MAX:
            raise UserError(f"a grammar may have {GRAMMAR_CHARS_MAX} characters at most")
        (found,) = await self._ask(
            "grammar", text, is_gbnf, trouble="this grammar cannot be read (its reader {how})"
        )
        return str(found)

    async def _ask(self, *question: Any, trouble: str = _TROUBLE) -> list[Any]:
        try:
            answer = await self.helper.ask(list(question))
        except HelperEnded as error:
            how = "took too long" if error.is_overdue else f"ended {error}"
            raise UserError(trouble.format(how=how)) from error
        if answer[0] is None:
            raise UserError(answer[1])
        return answer


@asynccontextmanager
async def open_tokenizer(path: Path) -> AsyncIterator[Tokenizer]:
    """Run the tokenizer of a slice that kept its vocabulary while the block lasts.

    Its process loads meanwhile; the first question waits for what is left of that.
    """
    tokenizer = Tokenizer(path)
    await tokenizer.helper.start()
    try:
        yield tokenizer
    finally:
        await tokenizer.helper.end()


class _Vocabulary:
    """What the process knows: a vocabulary, and how its control tokens are spelled."""

    def __init__(self, vocabulary: "Vocabulary", stack_bytes_max: int) -> None:
        self._vocabulary = vocabulary
        self._control = {each.text: each for each in vocabulary.control_tokens()}
        self._spellings = Spellings(self._control)
        self._stack_bytes_max = stack_bytes_max

    def answer(self, question: list[Any]) -> list[Any]:
        match question:
            case ["special"]:
                return [self._vocabulary.bos, self._vocabulary.eos, list(self._control)]
            case ["pieces", tokens]:
                return [[self._vocabulary.piece(token, special=True) for token in tokens]]
            case ["grammar", text, is_gbnf]:
                try:
                    return [self._grammars.read(text, is_gbnf=is_gbnf)]
                except UserError as error:
                    return [None, str(error)]
            case ["tokenize", text, special, literal, most]:
                outcome: list[list[int] | Exception] = []
                deep = partial(self._tokenize_into, outcome, text, special, literal)
                self._run_deep(deep, len(text))
                (found,) = outcome
                if isinstance(found, Exception):
                    return [None, str(found)]
                if most is not None and len(found) > most:
                    return [len(found), None]
                return [len(found), array.array("i", found).tobytes()]
            case _:
                raise AssertionError(f"the node asked for {question[:1]}")

    @cached_property
    def _grammars(self) -> "Grammars":
        from p2pinfer.engine.llama.constraints import Grammars

        return Grammars(self._vocabulary)

    def _run_deep(self, work: partial[None], chars: int) -> None:
        """Run with a stack large enough for a text of ``chars`` characters."""
        wanted = STACK_BYTES + STACK_BYTES_PER_CHAR * chars
        threading.stack_size(min(wanted, self._stack_bytes_max) & -4096)  # whole pages
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    def _tokenize_into(
        self, outcome: list[list[int] | Exception], text: str, special: bool, literal: list[int]
    ) -> None:
        try:
            tokens: list[int] = []
            for piece in self._pieces(text, set(literal)) if literal else [text]:
                if isinstance(piece, ControlToken):
                    tokens.append(piece.token)
                else:
                    # In pieces, what still spells a control token is literal.
                    tokens += self._vocabulary.tokenize(piece, special=special and not literal)
            begins_with = self._vocabulary.begins_with
            is_there = tokens[: len(begins_with)] == begins_with
            outcome.append(tokens if is_there else begins_with + tokens)
        except Exception as error:  # noqa: BLE001 -- raised again in the caller
            outcome.append(error)

    def _pieces(self, text: str, literal: set[int]) -> Iterator[str | ControlToken]:
        """Cut a text at its control tokens, as llama.cpp does, but not at literal ones."""
        end, strips = 0, False
        for at, spelled in self._spellings.find(text):
            if at < end:
                continue
            if at in literal:
                if self._control[spelled].is_always:  # cut in two, it spells nothing
                    yield text[end : at + 1].lstrip() if strips else text[end : at + 1]
                    end, strips = at + 1, False
                continue
            control, before = self._control[spelled], text[end:at]
            before = before.lstrip() if strips else before
            before = before.rstrip() if control.strips_left else before
            if before:
                yield before
            yield control
            end, strips = at + len(spelled), control.strips_right
        rest = text[end:].lstrip() if strips else text[end:]
        if rest:
            yield rest


def main() -> None:
    """Answer for the slice and with the stack that the arguments name."""
    from p2pinfer.engine.llama.binding import Vocabulary

    vocabulary = Vocabulary.of_file(Path(sys.argv[1]))
    answer_questions(_Vocabulary(vocabulary, int(sys.argv[2])).answer)


if __name__ == "__main__":
    main()
