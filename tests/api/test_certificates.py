"""Certificates that a gateway keeps: the newest, and no more than fit."""

from attrs import evolve
from trio.testing import MockClock

from p2pinfer.api.certificates import RECEIPTS_BYTES_MAX, RECEIPTS_MAX, Receipts
from p2pinfer.core.continuity import Break
from p2pinfer.core.ids import PeerId
from p2pinfer.core.trust import Trust
from tests.support.fake_gateway import Call, fake_gateway, http

WORDS = {"model": "toy-model", "prompt": "one two three", "max_tokens": 6}


def test_the_oldest_make_room() -> None:
    """By their number, and by their bytes."""
    receipts = Receipts()
    for number in range(RECEIPTS_MAX + 2):
        receipts.keep(str(number), b"x")
    kept = [receipts.find(str(number)) is not None for number in range(RECEIPTS_MAX + 2)]
    assert kept == [False, False] + RECEIPTS_MAX * [True]
    receipts.keep("large", b"x" * (RECEIPTS_BYTES_MAX - 1))
    assert receipts.find("0") is receipts.find(str(RECEIPTS_MAX)) is None
    assert receipts.find(str(RECEIPTS_MAX + 1)) == b"x"
    receipts.keep("too large", b"x" * (RECEIPTS_BYTES_MAX + 1))
    assert receipts.find("large") is receipts.find("too large") is None


async def test_certificate_is_fetched_after_its_answer(autojump_clock: MockClock) -> None:
    """By the link in a header, which a stream tells first, and by each choice's own."""
    async with fake_gateway() as (_, client, app), http(app) as ask:
        unchecked = await ask.post("/v1/completions", json=WORDS)
        missing = await ask.get(unchecked.headers["x-p2pinfer-receipt"])
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "no_receipt")
        assert unchecked.json()["choices"][0]["p2pinfer"]["receipt"] is None
        client.trust = Trust(stages=3, positions=9, rate=0.1)
        reply = await ask.post("/v1/completions", json={**WORDS, "n": 2, "temperature": 1})
        links = [choice["p2pinfer"]["receipt"] for choice in reply.json()["choices"]]
        assert links[0] == reply.headers["x-p2pinfer-receipt"]
        assert len(set(links)) == 2
        for link, choice in zip(links, reply.json()["choices"], strict=True):
            assert (await ask.get(link)).text == f"certificate: {choice['text']}"
        call = Call("/v1/completions", {**WORDS, "stream": True})
        await call.run(app)
        link = f"/api/receipts/{call.events[0]['id']}"
        assert call.headers["x-p2pinfer-receipt"] == link
        assert call.events[-1]["choices"][0]["p2pinfer"]["receipt"] == link
        text = "".join(each["choices"][0]["text"] for each in call.events)
        assert (await ask.get(link)).text == f"certificate: {text}"
        client.trust = evolve(client.trust, broken=Break((PeerId("x"),), 5, "it signed no receipt"))
        reply = await ask.post("/v1/completions", json=WORDS)
        assert (await ask.get(reply.headers["x-p2pinfer-receipt"])).status_code == 404
