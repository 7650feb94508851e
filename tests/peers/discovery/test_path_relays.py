"""Which peers may carry a path, and which a requester must not ask."""

from random import Random

from p2pinfer.core.advertisement import Advertisement, without_layers
from p2pinfer.core.ids import ModelId
from peers.discovery.path_relays import blocks_of, missing_without, pick_relays
from tests.support.adverts import MODEL, advert, peer_id, through


def at(host: str) -> str:
    """Return an address."""
    return f"/ip4/{host}/tcp/4001"


def serving(name: str, first: int, end: int, host: str) -> Advertisement:
    """Return the advertisement of a peer that serves layers."""
    return advert(name, first, end, addresses=(at(host),))


def bystander(name: str, *hosts: str) -> Advertisement:
    """Return the advertisement of a peer that serves none."""
    addresses = tuple(map(at, hosts))
    return without_layers(addresses, peer_id(name), MODEL, "toy", 1024, 512)


def names(known: list[Advertisement], count: int = 9, seed: int = 0, **more: str) -> list[str]:
    """Return the short names of those that are drawn."""
    barred = [peer_id(each) for each in more.get("barred", "").split()]
    blocks = blocks_of(at(each) for each in more.get("near", "").split())
    found = pick_relays(known, count, barred, blocks, Random(seed))
    return [peer.removeprefix("12D3Koo").lstrip("x") for peer, _ in found]


def test_blocks() -> None:
    """A provider's place, by both families; private addresses, names and nonsense are in none."""
    same = [at("8.8.8.8"), at("8.8.1.1"), "/ip6/2606:4700::1/tcp/1", "/ip6/2606:4700:9::1/tcp/1"]
    assert blocks_of(same) == {"8.8.0.0/16", "2606:4700::/32"}
    assert (
        blocks_of([at("10.0.0.1"), at("127.0.0.1"), "/dns4/example.org/tcp/1", "", "/x"]) == set()
    )


def test_who_alone_serves_a_layer_carries_no_path() -> None:
    """It would have to be a stage; one of two holders may, and then the other may not."""
    alone = [serving("a", 0, 10, "8.1.1.1"), serving("b", 10, 20, "8.2.1.1")]
    assert names(alone) == []
    twice = [*alone, serving("c", 0, 10, "8.3.1.1")]
    for seed in range(9):
        assert names(twice, seed=seed) in (["a"], ["c"])
    assert names(twice, barred="c") == []
    assert missing_without(twice, [peer_id("b")]) == {MODEL: [*range(10, 20)]}
    assert missing_without(twice, [peer_id("a")]) == {}


def test_another_model_counts_by_itself() -> None:
    """The only holder of any model's layer is left to it."""
    other = advert("o", 0, 20, model=ModelId("cd" * 32), addresses=(at("8.4.1.1"),))
    assert names([other, serving("a", 0, 10, "8.1.1.1"), serving("b", 0, 10, "8.2.1.1")], 1) != [
        "o"
    ]


def test_those_without_layers_come_first_and_at_random() -> None:
    """Who draws the same each time would be met there."""
    known = [
        serving("a", 0, 10, "8.1.1.1"),
        serving("b", 0, 10, "8.2.1.1"),
        bystander("r", "8.3.1.1"),
        bystander("s", "8.4.1.1"),
    ]
    drawn = [names(known, seed=seed) for seed in range(30)]
    assert {frozenset(each[:2]) for each in drawn} == {frozenset("rs")}
    assert {each[0] for each in drawn} == {"r", "s"}
    assert {each[2] for each in drawn} == {"a", "b"}
    assert all(len(each) == 3 for each in drawn)


def test_no_two_of_one_block() -> None:
    """Of one operator, as far as addresses tell; on a local network nothing tells."""
    known = [bystander("r", "8.3.1.1"), bystander("s", "8.3.2.2"), bystander("t", "8.4.1.1")]
    for seed in range(9):
        assert len(names(known, seed=seed)) == 2
    assert names(known, near="8.3.9.9") == ["t"]
    assert names([bystander("q", "8.4.1.1", "8.3.7.7")], near="8.3.9.9") == []
    here = [bystander("r", "127.0.0.1"), bystander("s", "127.0.0.1")]
    assert len(names(here, near="127.0.0.1")) == 2


def test_who_cannot_be_dialled_carries_nothing() -> None:
    """One without an address, and one that is itself called through a relay."""
    hidden = without_layers((through("r"),), peer_id("h"), MODEL, "toy", 1024, 512)
    assert names([bystander("n"), hidden]) == []
