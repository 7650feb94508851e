"""Which path an answer took: said by the gateway, its page, and the chat on a terminal."""

import json
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import ViewportSize, expect, sync_playwright

from tests.real.test_paths import FOUND_S_MAX, RelayProcess
from tests.support.browsers import ANSWER_MS_MAX, ask, launch
from tests.support.commands import report_of
from tests.support.gateways import RunningGateway, running_gateway
from tests.support.processes import (
    COMMAND,
    GONE_S_MAX,
    NETWORK,
    Peer,
    environment,
    read_until,
    stop,
)

pytestmark = pytest.mark.real

HOW = ("--network", NETWORK, "--context", "1024", "--temperature", "0", "--max-tokens", "24")
SIZE: ViewportSize = {"width": 1180, "height": 760}
PICTURE = os.environ.get("P2PINFER_TEST_PICTURE")
"""A file for what the page looked like, where a person wants to see it."""


@pytest.fixture(scope="module")
def relays(home: Path, swarm: list[Peer]) -> Iterator[list[RelayProcess]]:
    """Provide two relays that serve no layers."""
    found = [RelayProcess(home, number, swarm[0].address) for number in range(2)]
    try:
        yield [relay.wait_ready() for relay in found]
    finally:
        for relay in found:
            stop(relay.process)


@pytest.fixture(scope="module")
def gateway(home: Path, relays: list[RelayProcess]) -> Iterator[RunningGateway]:
    """Provide a gateway that asks through one relay, as soon as that has heard of all peers."""
    deadline = time.monotonic() + FOUND_S_MAX
    with ExitStack() as stack:
        while True:
            asks = running_gateway(home, "--via", "1", "--bootstrap", relays[0].address, *HOW)
            try:
                running = stack.enter_context(asks)
                break
            except AssertionError:  # it has said that there are too few relays, and ended
                assert time.monotonic() < deadline
        yield running


def test_the_api_says_which_relay_and_which_stages(
    gateway: RunningGateway, relays: list[RelayProcess], swarm: list[Peer]
) -> None:
    """As OpenAI's clients ask; the answer was checked over the path, too."""
    body = {"model": "default", "messages": [{"role": "user", "content": "Name two colours."}]}
    kind = {"content-type": "application/json"}
    request = Request(f"{gateway.url}/v1/chat/completions", json.dumps(body).encode(), kind)
    with urlopen(request) as reply:
        found = json.load(reply)["choices"][0]
    assert found["message"]["content"]
    assert found["p2pinfer"]["path"] == [relays[0].id]
    assert [hop["peer"] for hop in found["p2pinfer"]["route"]] == [peer.id for peer in swarm]
    assert found["p2pinfer"]["trust"]["held"]


def test_the_page_says_what_the_path_promises(
    gateway: RunningGateway, relays: list[RelayProcess]
) -> None:
    """Below an answer: who saw what."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            pytest.skip("no browser: install Chromium to test the web page")
        page = browser.new_page(viewport=SIZE)
        page.goto(gateway.url)
        ask(page, "Name two colours.")
        account = page.locator(".account")
        expect(account).to_be_visible(timeout=ANSWER_MS_MAX)
        account.locator("summary").click()
        said = account.locator(".path")
        expect(said).to_be_visible()
        expect(said).to_contain_text(f"through …{relays[0].id[-6:]}")
        expect(said).to_contain_text("an id drawn for this conversation, not yours")
        expect(said).to_contain_text("by timing without --pace")
        expect(said).to_contain_text("can still tell by timing")
        if PICTURE:
            page.screenshot(path=PICTURE)
        browser.close()


def test_the_chat_says_it_when_asked(
    home: Path, gateway: RunningGateway, relays: list[RelayProcess]
) -> None:
    """``/route`` on a terminal, with two relays; and some peer here vouches over the path."""
    ours, theirs = pty.openpty()
    terminal = os.fdopen(ours, "r+b", buffering=0)
    (home / "state" / "guards.json").unlink(missing_ok=True)
    how = ("--via", "2", "--pace", "20", "--anonymous", *HOW)
    command = ("chat", "--bootstrap", relays[0].address, *how)
    chat = subprocess.Popen(
        [*COMMAND, *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(home, PROMPT_TOOLKIT_NO_CPR="1", TERM="xterm", COLUMNS="200"),
        process_group=0,
    )
    os.close(theirs)
    try:
        read_until(terminal, b"for commands.")
        terminal.write(b"Name two colours.\r")
        read_until(terminal, b"tokens/s")
        terminal.write(b"/route\r")
        said = read_until(terminal, b"by timing").decode()
        peers = report_of(home, "status")["processes"]
    finally:
        terminal.close()  # it is hung up on
        chat.terminate()
        chat.wait(GONE_S_MAX)
    assert all(relay.id in said for relay in relays)
    assert "an id drawn for this conversation, not yours" in said
    assert "rows left every 20 ms" in said
    assert max(each["vouched"]["for"] for each in peers if "vouched" in each) == 1
    assert max(each["vouched"]["as_one_of"] for each in peers if "vouched" in each) == 2
