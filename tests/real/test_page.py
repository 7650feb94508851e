"""The web page in a real browser, with three real peers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    Page,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

from p2pinfer.core.certificate import MAGIC
from tests.support.browsers import ANSWER_MS_MAX, answer_with, ask, is_error, launch
from tests.support.gateways import RunningGateway, running_gateway
from tests.support.processes import CONTEXT, start_peers

pytestmark = pytest.mark.real

DESK: ViewportSize = {"width": 1360, "height": 860}
PHONE: ViewportSize = {"width": 390, "height": 844}

TOUCH_PX = 44
"""What a finger hits easily."""

TOKENS = 64
"""The longest answer, which a long story reaches: time enough to do something meanwhile."""

HOSTILE = (
    '<img src=x onerror="window.hit=1"> [x](javascript:alert(1)) `<b>` **<i>bold</i>**\n'
    "<script>hit=2</script>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide the system's browser, headless."""
    with sync_playwright() as playwright:
        running = launch(playwright)
        if running is None:
            pytest.skip("no browser: install Chromium to test the web page")
        yield running
        running.close()


@pytest.fixture(scope="module")
def gateway(home: Path, browser: Browser) -> Iterator[RunningGateway]:
    """Provide a gateway with three peers of its own."""
    options = ["--local", "3", "--context", "1024", "--temperature", "0"]
    with running_gateway(home, *options, "--max-tokens", str(TOKENS)) as running:
        yield running


@pytest.fixture
def page(browser: Browser, gateway: RunningGateway) -> Iterator[Page]:
    """Provide the page as a new visitor sees it; it must not log any error."""
    context = browser.new_context(viewport=DESK)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda line: errors.append(line.text) if is_error(line) else None)
    opened.goto(gateway.url)
    yield opened
    context.close()
    assert errors == []


def test_question_is_answered_and_the_map_shows_its_peers(page: Page) -> None:
    """A typed prompt, the answer and its report, three peers with their layers."""
    expect(page.locator("#status")).to_have_text("3 peers, all layers")
    peers = page.locator("#peers li:not([data-state=own])")
    expect(peers).to_have_count(3)
    expect(peers.locator(".peer-range")).to_have_text(
        ["layers 1:10", "layers 10:19", "layers 19:29"]
    )
    ask(page, "Name three colours.")
    expect(page.locator("#peers li.busy")).to_have_count(4, timeout=ANSWER_MS_MAX)
    account = page.locator(".account")
    expect(account).to_be_visible(timeout=ANSWER_MS_MAX)
    expect(page.locator(".turn.assistant .said")).not_to_be_empty()
    expect(account).to_contain_text(re.compile(r"3 peers · \d+ tokens · [\d.]+ tokens/s"))
    account.locator("summary").click()
    expect(account.locator(".route li")).to_have_count(3)
    expect(account).to_contain_text("checked")
    expect(account).to_contain_text("3 peers signed for")
    expect(page.locator("#route-strip .span")).to_have_count(5)  # three peers and both ends
    with page.expect_download() as saved:
        account.get_by_role("button", name="Certificate").click()
    assert saved.value.path().read_bytes().startswith(MAGIC)


def test_answer_can_be_stopped_and_made_again(page: Page) -> None:
    """By the button and by the Escape key; the text so far stays."""
    ask(page, "Tell a very long story.")
    expect(page.locator(".turn.assistant .said")).not_to_be_empty(timeout=ANSWER_MS_MAX)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_label("Your question")).to_be_focused()
    expect(page.locator(".foot")).to_contain_text("stopped")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".turn.assistant .said")).not_to_be_empty(timeout=ANSWER_MS_MAX)
    page.keyboard.press("Escape")
    expect(page.locator(".turn.busy")).to_have_count(0)


def test_answer_goes_on_while_another_conversation_is_open(page: Page) -> None:
    """The list marks the one being answered; going back shows the whole answer."""
    ask(page, "Tell a very long story.")
    expect(page.locator(".turn.assistant .said")).not_to_be_empty(timeout=ANSWER_MS_MAX)
    page.get_by_role("button", name="New conversation").first.click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("img", name="is being answered")).to_have_count(1)
    expect(page.get_by_role("img", name="is being answered")).to_have_count(
        0, timeout=ANSWER_MS_MAX
    )
    page.get_by_role("button", name="Tell a very long story.", exact=True).click()
    expect(page.locator(".account")).to_contain_text(f"{TOKENS} tokens")


def test_gateway_with_a_key_asks_for_it(page: Page) -> None:
    """Settings open by themselves, and the key is sent from then on."""
    error = {"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}}

    def judge(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, body=json.dumps(error))

    page.route("**/api/events", judge)
    page.reload()
    expect(page.locator("#status")).to_have_text("needs an API key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_attribute("data-state", "ready")


def test_another_tab_shows_the_conversation(page: Page) -> None:
    """Neither tab loses the other's answer in progress."""
    other = page.context.new_page()
    other.goto(page.url)
    ask(other, "Tell a very long story.")
    ask(page, "Say yes.")
    for each in (page, other):
        expect(each.locator(".account")).to_be_visible(timeout=ANSWER_MS_MAX)
    other.get_by_role("button", name="Say yes.", exact=True).click()
    expect(other.locator(".account")).to_be_visible()
    page.get_by_role("button", name="Tell a very long story.", exact=True).click()
    expect(page.locator(".account")).to_be_visible()


def test_many_peers_stay_readable(page: Page) -> None:
    """Problems have their own line; the map does not outgrow the window."""
    peers = [
        {"peer": f"12D3KooW{number:044d}", "first": number % 20, "end": number % 20 + 9}
        | {"state": "failed" if number == 7 else "serving", "row_us": 300, "sessions_free": 1}
        for number in range(200)
    ]
    state = {
        "model": {"name": "A model", "layers": 30},
        "kept": {"first": 1, "end": 29},
        "complete": True,
        "peers": peers,
        "sessions": {"running": 0, "waiting": 0, "idle": 0, "max": 4},
    }
    body = f"event: state\ndata: {json.dumps(state)}\n\n"
    page.route("**/api/events", lambda route: route.fulfill(status=200, body=body))
    page.reload()
    expect(page.locator("#peers li")).to_have_count(201)
    expect(page.locator("#peers li[data-state=failed] .peer-note")).to_be_visible()
    width = page.evaluate("document.querySelector('#swarm').scrollWidth")
    assert width <= page.evaluate("document.querySelector('#swarm').clientWidth")
    heights = page.evaluate("[...document.querySelectorAll('#peers li')].map(i => i.offsetHeight)")
    assert max(heights[1:7]) < 40


def test_conversations_and_settings_outlive_a_reload(page: Page, gateway: RunningGateway) -> None:
    """All are restored, except a deleted one."""
    ask(page, "Say yes.")
    expect(page.locator(".account")).to_be_visible(timeout=ANSWER_MS_MAX)
    page.get_by_role("button", name="New conversation").first.click()
    ask(page, "Say no.")
    expect(page.locator(".account")).to_be_visible(timeout=ANSWER_MS_MAX)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("dark").check()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_role("button", name="Done").click()
    page.reload()
    titles = page.locator("#chat-list .open")
    expect(titles).to_have_text(["Say no.", "Say yes."])
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    titles.nth(1).click()
    expect(page.locator(".turn.user .said")).to_have_text("Say yes.")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Say yes.").click()
    expect(titles).to_have_text(["Say no."])
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Again.")
    assert json.loads(asked.value.post_data or "")["temperature"] == 0.3


def test_model_output_is_text_and_never_code(page: Page) -> None:
    """Tags, script links and handlers are shown, not executed."""
    answer_with(page, HOSTILE)
    ask(page, "<b>x</b>")
    said = page.locator(".turn.assistant .said")
    expect(said).to_contain_text('<img src=x onerror="window.hit=1">')
    expect(said).to_contain_text("<script>hit=2</script>")
    assert said.locator("img, script, a, b, i").count() == 0
    expect(page.locator(".turn.user .said")).to_have_text("<b>x</b>")
    assert page.evaluate("window.hit") is None


def test_refusal_is_shown_in_the_gateways_words(page: Page) -> None:
    """The question can be asked again."""
    error = {"error": {"message": "The swarm is busy.", "type": "rate_limit_error"}}
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "Hello?")
    expect(page.locator(".problem")).to_have_text("The gateway cannot be reached.")
    page.unroute("**/v1/chat/completions")
    body = f"data: {json.dumps(error)}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=body))
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".problem")).to_have_text("The swarm is busy.")


def test_thoughts_are_folded(page: Page) -> None:
    """Apart from the answer, text like it, and not sent back with the next question."""
    answer_with(page, "Four.", reasoning_content="Two and two <b>")
    ask(page, "2 + 2?")
    said = page.locator(".turn.assistant .said")
    expect(said).to_contain_text("Four.")
    expect(said.get_by_text("Two and two <b>")).to_be_hidden()
    said.get_by_text("What it thought").click()
    expect(said.get_by_text("Two and two <b>")).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "And 3 + 3?")
    assert "Two and two" not in (asked.value.post_data or "")


def test_a_refused_question_can_be_edited_or_dropped(page: Page) -> None:
    """Repeated it would be refused again; it returns to the input field."""
    error = {"error": {"message": "the template refuses this: TemplateError: roles must alternate"}}
    body = json.dumps(error)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, body=body))
    ask(page, "Why?")
    problem = page.locator(".problem")
    expect(problem).to_have_text(
        "The template refuses this: roles must alternate. Edit the question, or begin a new"
        " conversation."
    )
    expect(page.get_by_role("button", name="Answer again")).to_have_count(0)
    page.get_by_role("button", name="Edit the question").click()
    expect(page.get_by_label("Your question")).to_have_value("Why?")
    expect(page.locator(".turn")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(problem).to_be_visible()
    page.locator(".tools").get_by_role("button", name="New conversation").click()
    expect(page.locator("#welcome")).to_be_visible()


def test_code_is_copied_and_links_show_where_they_lead(page: Page) -> None:
    """Only a block's text is copied; a link whose text hides its host shows it."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = "x = 1\n" + "y" * 500
    answer_with(page, f"```python\n{code}\n```\n[docs](https://other.example/a) and text")
    ask(page, "Code?")
    page.get_by_role("button", name="Copy", exact=True).first.click()
    assert page.evaluate("navigator.clipboard.readText()") == code
    expect(page.locator(".said .host")).to_have_text("(other.example)")
    expect(page.locator(".code figcaption span")).to_have_text("python")
    scrolls = "pre => pre.scrollWidth > pre.clientWidth"
    assert page.locator(".code pre").evaluate(scrolls)
    tops = page.evaluate(
        "[...document.querySelectorAll('.assistant .said, .code')]"
        ".map(each => each.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1]  # no gap above a leading block


def test_loading_is_shown_and_a_question_waits_for_it(page: Page) -> None:
    """The step and its progress are shown; the answer follows once the gateway is ready."""
    told = {"text": "probing layers 1:10 …", "share": 0.25}
    body = f"event: loading\ndata: {json.dumps(told)}\n\n"
    loads = [True, True, False]

    def events(route: Route) -> None:
        if loads.pop(0) if loads else False:
            route.fulfill(status=200, content_type="text/event-stream", body=body)
        elif hold:
            route.abort()
        else:
            route.continue_()

    hold = [True]
    page.route("**/api/events", events)
    page.reload()
    expect(page.locator("#loading")).to_contain_text("probing layers 1:10 …")
    answer_with(page, "Here I am.")
    ask(page, "Ready?")
    expect(page.locator(".live")).to_have_text("waiting until the model is loaded …")
    hold.clear()
    expect(page.locator(".turn.assistant .said")).to_have_text("Here I am.", timeout=20_000)
    expect(page.locator("#loading")).to_be_hidden()


def test_reading_of_a_long_prompt_has_a_bar(page: Page) -> None:
    """It shows how far the stages are."""
    ask(page, "Sum this up: " + "the cat sat on the mat and looked at the moon. " * 70)
    expect(page.locator(".live")).to_have_text(
        re.compile(r"reading: [\d,]+ of [\d,]+ tokens"), timeout=ANSWER_MS_MAX
    )
    expect(page.locator(".foot progress")).to_be_visible()
    page.keyboard.press("Escape")


def test_page_works_by_keyboard_and_on_a_phone(page: Page) -> None:
    """Nothing overflows, controls are named and large enough, and panels open and close."""
    page.set_viewport_size(PHONE)
    answer_with(page, "```\nx\n```")
    ask(page, "Hi")
    expect(page.locator(".tools button")).to_have_count(4)
    sizes = (
        "[...document.querySelectorAll('button')]"
        ".filter(each => each.offsetParent && !each.closest('.side'))"
        ".map(each => [each.offsetHeight, each.textContent || each.ariaLabel])"
    )
    assert [each for each in page.evaluate(sizes) if each[0] < TOUCH_PX] == []
    expect(page.locator("#model")).to_have_text("SmolLM2-135M-Instruct")
    expect(page.locator("#model")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.get_by_role("button", name="Swarm").click()
    expect(page.locator("#peers li").first).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(page.locator("#swarm")).not_to_be_visible()
    expect(page.get_by_role("button", name="Swarm")).to_be_focused()
    page.get_by_role("button", name="Conversations").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="New conversation").first).to_be_focused()
    unnamed = "button => !(button.textContent.trim() || button.ariaLabel)"
    found = f"[...document.querySelectorAll('button')].filter({unnamed}).length"
    assert page.evaluate(found) == 0
    assert page.evaluate("document.documentElement.lang") == "en"


def test_page_comes_back_when_the_gateway_does(browser: Browser, page: Page) -> None:
    """While the event stream is cut it says so, and it retries by itself."""
    expect(page.locator("#status")).to_have_attribute("data-state", "ready")
    page.route("**/api/events", lambda route: route.abort())
    page.evaluate("window.stop()")
    expect(page.locator("#status")).to_have_attribute("data-state", "lost")
    page.unroute("**/api/events")
    expect(page.locator("#status")).to_have_attribute("data-state", "ready", timeout=20_000)


def test_killed_peer_turns_grey_while_the_answer_continues(browser: Browser, home: Path) -> None:
    """Another holder of its layers takes over; the map and the report show both."""
    network, ranges = "page", ["1:10", "10:19", "19:29", "10:19"]
    peers = start_peers(home, ranges, network=network)
    try:
        ways = ["--bootstrap", peers[0].address, "--network", network, "--context", str(CONTEXT)]
        with running_gateway(home, *ways, "--temperature", "0") as gateway:
            page = browser.new_page(viewport=DESK)
            page.goto(gateway.url)
            expect(page.locator("#peers li[data-state=serving]")).to_have_count(4)
            ask(page, "Tell a very long story about a forest and all who live in it.")
            expect(page.locator(".turn.assistant .said")).not_to_be_empty(timeout=ANSWER_MS_MAX)
            busy = page.locator("#peers li.busy")
            expect(busy).to_have_count(4)  # the gateway's own part and three of the peers
            titles = [each.get_attribute("title") for each in busy.all()]
            (lost,) = [peer for peer in peers if peer.id in titles and peer.layers == "10:19"]
            (other,) = [peer for peer in peers if peer.id not in titles]
            lost.process.kill()
            row = page.locator(f'#peers li[title="{lost.id}"]')
            expect(row).to_have_attribute(
                "data-state", re.compile("failed|gone"), timeout=ANSWER_MS_MAX
            )
            account = page.locator(".account")
            expect(account).to_be_visible(timeout=2 * ANSWER_MS_MAX)
            expect(page.locator(".problem")).to_have_count(0)
            made_by = [each.get_attribute("title") for each in account.locator(".route li").all()]
            assert other.id in made_by
            page.close()
    finally:
        for peer in peers:
            peer.stop()


def test_reader_chooses_among_several_models(page: Page) -> None:
    """The choice is asked with every question, and outlives a reload; one model needs no choice."""
    expect(page.locator("#model")).to_be_visible()
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()
    models = [{"id": name, "p2pinfer": {"name": name.upper()}} for name in ("one", "two")]
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": models}))
    for _ in range(2):
        page.reload()
        picker = page.get_by_label("Model", exact=True)
        expect(picker).to_be_visible()
        if picker.input_value() == "one":
            picker.select_option("TWO")
    answer_with(page, "Four.")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "2 + 2?")
    assert json.loads(asked.value.post_data or "")["model"] == "two"


def test_conversations_are_exported_and_imported(page: Page, tmp_path: Path) -> None:
    """What one browser has another one takes, once, and nothing else."""
    answer_with(page, "Four.")
    ask(page, "2 + 2?")
    expect(page.locator("#log")).to_contain_text("Four.")
    with page.expect_download() as kept:
        page.get_by_role("button", name="Export").click()
    kept.value.save_as(tmp_path / "kept.json")
    page.evaluate("localStorage.clear()")
    page.reload()
    listed = page.locator("#chat-list li").filter(has_text="2 + 2?")
    expect(listed).to_have_count(0)
    (tmp_path / "bad.json").write_text('{"conversations": [{"id": "x", "turns": [{"text": 1}]}]}')
    for name, count in (("bad.json", 0), ("kept.json", 1), ("kept.json", 1)):
        page.locator("#import-file").set_input_files(tmp_path / name)
        expect(listed).to_have_count(count)
