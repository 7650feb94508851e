"""How often peers can be made to dial a host where nobody answers."""

from transports.vain_dials import HOSTS_MAX, VAIN_PER_HOST_MAX, VAIN_S, VainDials


def test_a_host_is_dialled_in_vain_a_few_times() -> None:
    """Whatever peers and ports are named there, and whatever other addresses beside it."""
    dials = VainDials()
    victim = [f"/ip4/5.6.7.8/tcp/{port}/p2p/QmA" for port in range(20)]
    assert [dials.begin([each], 0.0) for each in victim[:4]] == [[each] for each in victim[:4]]
    other = "/ip4/5.6.7.9/tcp/1/p2p/QmA"
    assert dials.begin([*victim, other], 1.0) == [other]
    assert dials.begin(victim, VAIN_S - 1) == []
    assert dials.begin(victim[5:6], VAIN_S) == victim[5:6]


def test_an_answer_is_not_counted() -> None:
    """A house full of peers is called as often as there are peers."""
    dials = VainDials()
    for port in range(50):
        addresses = [f"/ip4/5.6.7.8/tcp/{port}", f"/ip6/2001:4860::8/tcp/{port}"]
        assert dials.begin(addresses, 0.0) == addresses
        dials.answered(addresses)


def test_private_networks_count_as_one_host() -> None:
    """Nobody is made to search its own network, in whatever range that is."""
    dials = VainDials()
    tried = [f"/ip4/192.168.{n}.1/tcp/80" for n in range(9)]
    tried += [f"/ip4/10.0.0.{n}/tcp/80" for n in range(9)]
    tried += [f"/ip6/fe80::{n}/tcp/80" for n in range(1, 9)] + ["/ip4/127.0.0.1/tcp/80"]
    assert sum(len(dials.begin([each], 0.0)) for each in tried) == VAIN_PER_HOST_MAX
    circuit = "/ip4/192.168.1.9/tcp/1/p2p/QmR/p2p-circuit/p2p/QmA"
    assert dials.begin([circuit], 0.0) == []  # it is the relay that is dialled


def test_what_is_no_host_is_let_through() -> None:
    """Addresses in memory, and whatever a transport refuses by itself."""
    dials = VainDials()
    for _ in range(9):
        assert dials.begin(["/memory/0/p2p/x", "nonsense"], 0.0) == ["/memory/0/p2p/x", "nonsense"]


def test_hosts_are_bounded() -> None:
    """The ones longest untouched are forgotten."""
    dials = VainDials()
    for number in range(2 * HOSTS_MAX):
        dials.begin([f"/dns4/a{number}.example/tcp/1"], 0.0)
    assert len(dials._at) == HOSTS_MAX
