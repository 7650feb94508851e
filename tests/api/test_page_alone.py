"""The page in a real browser, without a gateway: its files alone, and answers made up for it."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from p2pinfer.api.app import CONTENT_TYPES, PAGE_HEADERS
from p2pinfer.client.words import table_path
from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import Audited, AuditVerdict, Trust
from tests.support.browsers import answer_with, ask, is_error, launch

PHONE: ViewportSize = {"width": 390, "height": 844}
HERE = "http://page.example/"
STATIC = files("p2pinfer.api").joinpath("static")
PEER = PeerId("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")

STATE = {
    "model": {"name": "A model", "layers": 30},
    "kept": {"first": 1, "end": 29},
    "complete": True,
    "missing": "",
    "peers": [{"peer": PEER, "first": 1, "end": 29, "state": "serving", "row_us": 300}],
    "sessions": {"running": 0, "waiting": 0, "idle": 0, "max": 4},
}


DAYS = [{"day": 20_000 + at, "given": 1500 * at, "had": 40_000 - 900 * at} for at in range(30)]
WORK = {"given": 652_500, "had": 808_500, "signed_by_it": 600_000, "signed_to_it": 808_500}
EARNINGS = {
    **{name: WORK[name] for name in ("given", "had")},
    "days": DAYS,
    "peers": [{"peer": PEER, **WORK}],
    "statements": [],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide the system's browser, headless."""
    with sync_playwright() as playwright:
        running = launch(playwright)
        if running is None:
            pytest.skip("no browser: install Chromium to test the web page")
        yield running
        running.close()


def serve(route: Route, here: str) -> None:
    """Answer as a gateway does, with the headers of one."""
    path = route.request.url.removeprefix(here)
    if path == "api/events":
        body = f"event: state\ndata: {json.dumps(STATE)}\n\n".encode()
        return route.fulfill(status=200, content_type="text/event-stream", body=body)
    if path == "v1/models":
        return route.fulfill(json={"data": []})
    if path == "api/earnings":
        return route.fulfill(json=EARNINGS)
    names = {"": "index.html", "earnings": "earnings.html"}
    file = STATIC.joinpath(names.get(path, path.removeprefix("static/")))
    if path == "static/es.json":
        file = table_path("es")
    kind = CONTENT_TYPES[file.name.rpartition(".")[2]]
    headers = {**PAGE_HEADERS, "content-type": kind}
    return route.fulfill(status=200, headers=headers, body=file.read_bytes())


def open_page(browser: Browser, locale: str) -> tuple[Page, list[str]]:
    """Return the page as a reader of a language sees it, and what it logs as errors."""
    page = browser.new_context(viewport=PHONE, locale=locale).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if is_error(line) else None)
    page.route(f"{HERE}**", lambda route: serve(route, HERE))
    page.goto(HERE)
    return page, errors


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Provide the page in English; it must not log any error."""
    page, errors = open_page(browser, "en-GB")
    yield page
    page.context.close()
    assert errors == []


def test_code_is_coloured_and_formulas_are_set(page: Page) -> None:
    """By libraries that come with the first that needs them; money is no formula."""
    code = 'def f(x: int) -> str:\n    return "<b>" + str(x)  # why'
    answer_with(
        page, f"```python\n{code}\n```\nSo $x^2$, for $5 or $6:\n\n$$\n\\frac{{1}}{{2}}\n$$"
    )
    ask(page, "Show me.")
    said = page.locator(".turn.assistant .said")
    expect(said.locator(".hljs-keyword").first).to_have_text("def")
    expect(said.locator("pre code")).to_have_text(code, use_inner_text=True)
    expect(said.locator("math")).to_have_count(2)
    expect(said.locator("div.formula mfrac")).to_have_count(1)
    expect(said).to_contain_text("for $5 or $6:")
    assert said.locator("b").count() == 0


def test_files_go_along_as_text(page: Page, tmp_path: Path) -> None:
    """Dropped or chosen; what is no text is refused in words; asked again it is still there."""
    (tmp_path / "notes.md").write_text("```\nnested\n```")
    (tmp_path / "photo.bin").write_bytes(b"\xff\xfe\x00")
    answer_with(page, "Read.")
    page.locator("#files").set_input_files([tmp_path / "notes.md", tmp_path / "photo.bin"])
    expect(page.locator("#attach-problem")).to_contain_text("photo.bin is not text")
    page.evaluate(
        "() => { const data = new DataTransfer(); data.items.add(new File(['dropped'], 'a.txt'));"
        " dispatchEvent(new DragEvent('drop', { dataTransfer: data, cancelable: true })); }"
    )
    expect(page.get_by_role("button", name="Remove notes.md")).to_be_visible()
    expect(page.get_by_role("button", name="Remove a.txt")).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Sum up.")
    (message,) = json.loads(asked.value.post_data or "")["messages"]
    assert message["content"] == (
        "notes.md:\n````\n```\nnested\n```\n````\n\na.txt:\n```\ndropped\n```\n\nSum up."
    )
    expect(page.locator("#attached li")).to_have_count(0)
    expect(page.locator(".turn.user .file summary")).to_have_text(["notes.md", "a.txt"])
    page.reload()
    expect(page.locator(".turn.user .file")).to_have_count(2)


def test_tool_calls_are_shown_and_answered_by_hand(page: Page) -> None:
    """The call in the answer, what it returns typed by the reader, and both in the next request."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools, a JSON list").fill(json.dumps([tool]))
    page.get_by_role("button", name="Done").click()
    function = {"name": "weather", "arguments": '{"city":"Quito"}'}
    call = {"index": 0, "id": "c1", "type": "function", "function": function}
    answer_with(page, "", tool_calls=[call])
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Weather in Quito?")
    assert json.loads(asked.value.post_data or "")["tools"] == [tool]
    expect(page.locator(".call")).to_contain_text('"city": "Quito"')
    page.get_by_label("What weather returns").fill("18 °C")
    answer_with(page, "It is mild.")
    with page.expect_request("**/v1/chat/completions") as again:
        page.get_by_role("button", name="Send results").click()
    _, said, result = json.loads(again.value.post_data or "")["messages"]
    assert said["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert result == {"role": "tool", "tool_call_id": "c1", "content": "18 °C"}
    expect(page.locator(".turn.assistant").last).to_contain_text("It is mild.")


def test_page_speaks_the_readers_language(browser: Browser) -> None:
    """Spanish by the browser, trust and swarm included, and English once it is chosen."""
    page, errors = open_page(browser, "es-EC")
    expect(page.locator("#swarm-text")).to_have_text("1 nodo sirve las 30 capas")
    expect(page.locator(".peer-note").last).to_have_text("sirviendo · 0,30 ms por token y capa")
    audited = Audited(PEER, 1, 29, AuditVerdict.SAME, ("this machine",))
    account = {
        "route": [{"peer": PEER, "layers": "1:29"}],
        "tokens": 2,
        "tokens_per_second": 1234.5,
        "time_to_first_token_ms": 80.4,
        "drafts_kept": 1,
        "drafts_dropped": 2,
        "trust": Trust(1, 70, 0.1, audits=(audited,)).as_dict(),
    }
    chunk = {"choices": [{"index": 0, "delta": {"content": "Sí."}, "p2pinfer": account}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=body))
    page.get_by_label("Tu pregunta").fill("¿Sí o no?")
    page.get_by_role("button", name="Enviar").click()
    shown = page.locator(".account")
    expect(shown).to_contain_text("1 nodo · 2 tokens · 1234,5 tokens/s · comprobado")
    shown.locator("summary").click()
    expect(shown).to_contain_text("los mismos bits, repetido por esta máquina")
    expect(shown).to_contain_text("1 nodo firmó 70 filas")
    expect(shown).to_contain_text("se repite 1 de cada 10")
    expect(shown).to_contain_text("de 3 tokens adelantados acertaron 1")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_role("button", name="Ajustes").click()
    page.get_by_label("English").check()
    page.get_by_role("button", name="Listo").click()
    expect(page.get_by_label("Your question")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert errors == []
    page.context.close()


def test_earnings_are_shown_by_day_and_peer(page: Page) -> None:
    """Sums, thirty days as bars, a table, and the way there and back, on a phone."""
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("link", name="Given and received").click()
    expect(page.locator("#sums dd")).to_have_text(["653", "809", "156"])
    expect(page.locator("#sums dt").last).to_have_text("owed to others")
    expect(page.locator("#days span")).to_have_count(30)
    heights = "[...document.querySelectorAll('#days .given')].map(each => each.offsetHeight)"
    given = page.evaluate(heights)
    assert given[0] == 0
    assert given == sorted(given)
    row = page.locator("#peers tbody tr")
    expect(row).to_have_count(1)
    expect(row.locator("td")).to_have_text(["653", "809", "600", "809"])
    width = page.locator("main").evaluate("main => main.scrollWidth")
    assert width <= PHONE["width"]
    page.get_by_role("link", name="Back to the chat").click()
    expect(page.get_by_label("Your question")).to_be_visible()


def test_answers_are_kept_to_learn_from_at_home(browser: Browser) -> None:
    """Under the name localhost a good answer is sent to be kept, and a mended one replaces it."""
    home, sent = "http://localhost/", []

    def kept(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or ""))
        route.fulfill(json={"marked": len(sent)})

    def refused(route: Route) -> None:
        route.fulfill(status=400, json={"error": {"message": "It is full."}})

    page = browser.new_context(viewport=PHONE, locale="en-GB").new_page()
    page.route(f"{home}**", lambda route: serve(route, home))
    page.route("**/api/marked", kept)
    page.goto(home)
    answer_with(page, "It is blue.")
    ask(page, "What is it?")
    page.get_by_role("button", name="Good answer").click()
    expect(page.locator("#spoken")).to_contain_text("1 in all")
    page.get_by_role("button", name="Mend the answer").click()
    page.get_by_label("What the answer should have been").fill("It is red.")
    page.get_by_role("button", name="Keep it to learn from", exact=True).click()
    expect(page.locator("#spoken")).to_contain_text("2 in all")
    expect(page.locator(".turn.assistant .said")).to_have_text("It is red.")
    asked = {"role": "user", "content": "What is it?"}
    assert [each["messages"] for each in sent] == [
        [asked, {"role": "assistant", "content": "It is blue."}],
        [asked, {"role": "assistant", "content": "It is red."}],
    ]
    page.route("**/api/marked", refused)
    page.get_by_role("button", name="Good answer").click()
    expect(page.locator(".foot .problem")).to_have_text("It is full.")
    page.context.close()


def test_answers_are_not_marked_elsewhere(page: Page) -> None:
    """A page that came from another machine offers it to nobody."""
    answer_with(page, "It is blue.")
    ask(page, "What is it?")
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    assert page.get_by_role("button", name="Good answer").count() == 0


@pytest.mark.parametrize("width", [320, 360])
@pytest.mark.parametrize("said", ["3 peers", "connecting to the swarm"])
def test_the_head_of_the_page_fits_narrow_phones(width: int, said: str, page: Page) -> None:
    """The name of the program does not run into what the swarm does."""
    page.set_viewport_size({"width": width, "height": 600})
    expect(page.locator("#status")).to_be_visible()
    gap = page.evaluate(
        """said => {
            const pill = document.querySelector("#status");
            pill.textContent = said;
            const name = document.createRange();
            name.selectNodeContents(document.querySelector("h1"));
            return pill.getBoundingClientRect().left - name.getBoundingClientRect().right;
        }""",
        said,
    )
    assert gap >= 0
