"""The group of edwards25519 is that of RFC 8032, and its hash that of RFC 9380."""

from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)

from p2pinfer.core.edwards import ORDER, hash_to_point, is_point, is_scalar, scalar_of
from tests.support import edwards

SUITE = b"QUUX-V01-CS02-with-edwards25519_XMD:SHA-512_ELL2_RO_"
HASHED = {
    b"": (
        "3c3da6925a3c3c268448dcabb47ccde5439559d9599646a8260e47b1e4822fc6",
        "09a6c8561a0b22bef63124c588ce4c62ea83a3c899763af26d795302e115dc21",
    ),
    b"abc": (
        "608040b42285cc0d72cbb3985c6b04c935370c7361f4b7fbdb1ae7f8c1a8ecad",
        "1a8395b88338f22e435bbd301183e7f20a5f9de643f11882fb237f88268a5531",
    ),
    b"abcdef0123456789": (
        "6d7fabf47a2dc03fe7d47f7dddd21082c5fb8f86743cd020f3fb147d57161472",
        "53060a3d140e7fbcda641ed3cf42c88a75411e648a1add71217f70ea8ec561a6",
    ),
    b"q128_" + b"q" * 128: (
        "5fb0b92acedd16f3bcb0ef83f5c7b7a9466b5f1e0d8d217421878ea3686f8524",
        "2eca15e355fcfa39d2982f67ddb0eea138e2994f5956ed37b7f72eea5e89d2f7",
    ),
}
"""RFC 9380, J.5.1: messages, and the points' coordinates."""

SMALL_ORDER = [bytes(32), bytes([1]) + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]


@pytest.mark.parametrize("message", HASHED)
def test_a_hash_is_that_of_the_standard(message: bytes) -> None:
    """To the last bit, for its test vectors."""
    x, y = (int(each, 16) for each in HASHED[message])
    assert hash_to_point(message, SUITE) == edwards.encode((x, y))


def test_whatever_is_hashed_is_a_point_of_prime_order() -> None:
    """And another one for another purpose."""
    found = {hash_to_point(bytes([n]), domain) for n in range(20) for domain in (b"one", b"two")}
    assert len(found) == 40
    assert all(map(is_point, found))
    assert all(edwards.times(ORDER, edwards.decode(each)) == (0, 1) for each in [*found][:2])


def test_the_library_computes_in_this_group() -> None:
    """Sums and multiples are those of plain whole numbers."""
    chance = Random(1)
    for _ in range(5):
        numbers = [chance.randrange(1, ORDER) for _ in range(2)]
        one, two = (number.to_bytes(32, "little") for number in numbers)
        key = crypto_scalarmult_ed25519_base_noclamp(one)
        assert edwards.decode(key) == edwards.times(numbers[0], edwards.BASE)
        other = crypto_scalarmult_ed25519_noclamp(two, key)
        assert edwards.decode(other) == edwards.times(numbers[1], edwards.decode(key))
        total = edwards.add(edwards.decode(key), edwards.decode(other))
        assert edwards.decode(crypto_core_ed25519_add(key, other)) == total


@pytest.mark.parametrize(
    ("seed", "public"),
    [  # RFC 8032, 7.1
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
    ],
)
def test_a_seed_has_the_scalar_of_its_key(seed: str, public: str) -> None:
    """As the standard says."""
    data = bytes.fromhex(seed)
    assert crypto_scalarmult_ed25519_base_noclamp(scalar_of(data)).hex() == public
    key = Ed25519PrivateKey.from_private_bytes(data).public_key()
    assert key.public_bytes_raw().hex() == public


@pytest.mark.parametrize("data", [*SMALL_ORDER, b"", bytes(31), b"\xff" * 32, b"\x02" + bytes(31)])
def test_what_is_no_point_is_not_taken_for_one(data: bytes) -> None:
    """Nor one of small order."""
    assert not is_point(data)


def test_a_point_with_a_part_of_small_order_is_none() -> None:
    """Adding one would make eight tags of each."""
    point = hash_to_point(b"", SUITE)
    for small in SMALL_ORDER[::2]:
        other = edwards.encode(edwards.add(edwards.decode(point), edwards.decode(small)))
        assert other != point
        assert not is_point(other)


def test_scalars_are_below_the_order() -> None:
    """The same number has one form."""
    assert is_scalar((ORDER - 1).to_bytes(32, "little"))
    assert not is_scalar(ORDER.to_bytes(32, "little"))
    assert not is_scalar(bytes(31))
