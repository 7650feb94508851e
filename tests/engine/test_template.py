"""Chat templates: what good ones make, and what hostile ones cannot do."""

import gc
import signal
import subprocess

import pytest

from p2pinfer.core.errors import UnsupportedModel, UserError
from p2pinfer.engine import template
from p2pinfer.engine.template import CHATML, ChatTemplate

HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello é😀"}]


def test_chatml_is_the_default() -> None:
    """A model without a template gets ChatML, with the assistant's turn opened."""
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello é😀<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ChatTemplate(None).render(HELLO) == expected
    assert ChatTemplate(CHATML).render(HELLO) == expected


def test_templates_get_what_they_expect() -> None:
    """Messages as items or attributes, the special tokens, and blocks trimmed as models expect."""
    source = (
        "{{ bos_token }}{% for m in messages %}\n"
        "    {% set last = loop.last %}\n"
        "{{ m.role|upper }}: {{ m['content'].strip() }}{{ eos_token if last }}\n"
        "{% endfor %}"
    )
    told = ChatTemplate(source, bos="<s>", eos="</s>").render(HELLO)
    assert told == "<s>SYSTEM: Be brief.\nUSER: Hello é😀</s>\n"


def test_a_broken_template_is_found_when_the_model_is() -> None:
    """Not Jinja: the model cannot be chatted with, and the text says why."""
    with pytest.raises(UnsupportedModel, match=r"chat template is broken: .*endfor"):
        ChatTemplate("{% for m in messages %}")
    with pytest.raises(UnsupportedModel, match="chat template is broken"):
        ChatTemplate("{{ " + "(" * 10_000)


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
def test_internals_of_python_are_not_there(source: str) -> None:
    """What leads out of the sandbox is undefined, and prints as nothing."""
    assert ChatTemplate(source).render(HELLO) == ""


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
def test_what_a_template_may_not_do(source: str, reason: str) -> None:
    """Python's internals, errors of every kind and too much memory end as one clear sentence."""
    with pytest.raises(UserError, match=f"chat template refuses this: .*({reason})"):
        ChatTemplate(source).render(HELLO)


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
def test_a_template_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long calculation nor loops that print nothing hold the chat for ever."""
    monkeypatch.setattr(template, "RENDER_CPU_S_MAX", 1)
    with pytest.raises(UserError, match="does not come to an end"):
        ChatTemplate(source).render(HELLO)


def test_one_process_renders_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a refusal; one that was killed is replaced, and none is left behind."""
    started: list[subprocess.Popen[bytes]] = []
    start = template._start

    def counted() -> subprocess.Popen[bytes]:
        started.append(start())
        return started[-1]

    monkeypatch.setattr(template, "_start", counted)
    made = ChatTemplate("{{ 1 // 0 if messages|length == 1 else messages[1].content }}")
    for _ in range(2):
        with pytest.raises(UserError, match="ZeroDivisionError"):
            made.render(HELLO[:1])
        assert made.render(HELLO) == "Hello é😀"
    assert len(started) == 1
    started[0].kill()
    started[0].wait()
    assert made.render(HELLO) == "Hello é😀"
    del made
    gc.collect()
    assert [each.returncode for each in started] == [-signal.SIGKILL, -signal.SIGKILL]
