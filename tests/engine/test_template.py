"""Chat templates: what good ones render, and what hostile ones cannot do."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from p2pinfer.core.errors import UserError
from p2pinfer.engine import template
from p2pinfer.engine.special_tokens import NO_SPECIAL_TOKENS, SpecialTokens
from p2pinfer.engine.template import (
    CHATML,
    BrokenTemplate,
    ChatTemplate,
    Message,
    Prompt,
    check_template,
    read_template,
    template_remark,
)

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello é😀"}]


async def render(
    source: str | None,
    messages: Sequence[Message] = HELLO,
    special: SpecialTokens = NO_SPECIAL_TOKENS,
    *,
    parse_special: bool = False,
) -> Prompt:
    """Render a conversation once, on a day in May."""
    made = ChatTemplate(source, special, lambda: 1_747_915_200)
    try:
        return await made.render(messages, parse_special=parse_special)
    finally:
        await made.end()


async def text_of(source: str | None, messages: Sequence[Message] = HELLO) -> str:
    """Render a conversation once, and return the text alone."""
    return (await render(source, messages)).text


async def test_chatml_is_the_default() -> None:
    """A model without a template gets ChatML, with the assistant's turn opened."""
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello é😀<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert await text_of(None) == await text_of(CHATML) == expected


async def test_templates_get_what_they_expect() -> None:
    """Messages as items or attributes, the special tokens, and blocks trimmed as models expect."""
    source = (
        "{{ bos_token }}{% for m in messages %}\n"
        "    {% set last = loop.last %}\n"
        "{{ m.role|upper }}: {{ m['content'].strip() }}{{ eos_token if last }}\n"
        "{% endfor %}"
    )
    told = await render(source, special=SpecialTokens("<s>", "</s>"))
    assert told.text == "<s>SYSTEM: Be brief.\nUSER: Hello é😀</s>\n"


def test_a_broken_template_is_recognised_without_running_it() -> None:
    """The message says why and what to do; for a model without one, what is used instead."""
    for broken in ("{% for m in messages %}", "{{ " + "(" * 10_000):
        with pytest.raises(BrokenTemplate, match=r"template is broken: .*--chat-template FILE"):
            check_template(broken)
        assert "template is broken" in (template_remark(broken, "Toy") or "")
    check_template(CHATML)
    assert template_remark(CHATML, "Toy") is None
    assert "Toy brings no chat template" in (template_remark(None, "Toy") or "")


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    """A file that is not a template is refused by name."""
    file = tmp_path / "own.jinja"
    with pytest.raises(UserError, match=r"cannot read .*own\.jinja: No such file"):
        read_template(file)
    for content, reason in (
        (b"{% if %}", "no chat template: Expected"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"x" * (template.TEMPLATE_CHARS_MAX + 1), "over 1000000 characters"),
    ):
        file.write_bytes(content)
        with pytest.raises(
            UserError, match=rf"own\.jinja is no chat template: .*{reason}|{reason}"
        ):
            read_template(file)
    file.write_text(CHATML)
    assert read_template(file) == CHATML


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ ''.__class__ }}",
        "{{ messages|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__ }}",
    ],
)
async def test_python_internals_are_not_accessible(source: str) -> None:
    """Anything that leads out of the sandbox is undefined, and prints as nothing."""
    assert await text_of(source) == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("{{ raise_exception('roles must alternate') }}", "alternate", id="raises"),
        pytest.param("{{ ''.__class__.__mro__ }}", "SecurityError", id="classes"),
        pytest.param("{{ messages.append(1) }}", "SecurityError", id="changes its input"),
        pytest.param("{{ messages[0].content.x.y }}", "UndefinedError", id="undefined"),
        pytest.param("{{ messages|nonsense }}", "TemplateAssertionError", id="no such filter"),
        pytest.param("{{ 1 // 0 }}", "ZeroDivisionError", id="division"),
        pytest.param("{{ 'x' + 1 }}", "TypeError", id="types"),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion", id="deep"),
        pytest.param("{% for i in range(10**9) %}{% endfor %}", "OverflowError", id="range"),
        pytest.param("{{ 'x' * 10**10 }}", "MemoryError", id="memory"),
        pytest.param(
            "{{ '%9999999999d' % 1 }}", "MemoryError|OverflowError", id="memory by format"
        ),
        pytest.param("{{ 'x' * 4000001 }}", "4,000,000 characters", id="long prompt"),
        pytest.param(
            "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "4,000,000", id="long sum"
        ),
    ],
)
async def test_forbidden_operations_are_refused(source: str, reason: str) -> None:
    """Python's internals, all kinds of errors, and too much memory give one clear sentence."""
    with pytest.raises(UserError, match=f"chat template refuses this: .*({reason})"):
        await text_of(source)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ 10 ** (10 ** 10) }}", id="arithmetic"),
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            id="loops",
        ),
    ],
)
async def test_an_endless_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long calculation nor loops that print nothing hold the chat for ever."""
    monkeypatch.setattr(template, "RENDER_CPU_S_MAX", 1)
    with pytest.raises(UserError, match="does not come to an end"):
        await text_of(source)


async def test_one_process_renders_repeatedly() -> None:
    """Also after a refusal; a killed process is replaced, and none is left running."""
    made = ChatTemplate("{{ 1 // (messages[0].content|length - 1) }}{{ messages[0].content }}")
    processes = set()
    for _ in range(2):
        with pytest.raises(UserError, match="ZeroDivisionError"):
            await made.render([{"role": "user", "content": "x"}])
        assert (await made.render(HELLO[1:])).text == "0Hello é😀"
        processes.add(made._helper._process)
    (first,) = processes
    assert first
    first.kill()
    await first.wait()
    assert (await made.render(HELLO[1:])).text == "0Hello é😀"
    second = made._helper._process
    await made.end()
    assert second
    assert [first.returncode, second.returncode] == [-signal.SIGKILL, -signal.SIGKILL]


async def test_a_cancelled_question_spoils_no_other_answer() -> None:
    """Cancelling a question ends its process; later questions get a new one."""
    made = ChatTemplate("{% for i in range(9999999 if messages[0].content == 'x' else 1) %}"
                        "{% endfor %}{{ messages[0].content }}")  # fmt: skip
    await made.render(HELLO)
    with trio.move_on_after(0):
        await made.render([{"role": "user", "content": "x"}])
    assert (await made.render(HELLO[1:])).text == "Hello é😀"
    await made.end()
