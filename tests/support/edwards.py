"""The group of edwards25519 in whole numbers, slowly: a second opinion on what libsodium says."""

from collections.abc import Sequence

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P

Point = tuple[int, int]
"""Affine; (0, 1) is the neutral one."""


def decode(data: bytes) -> Point:
    """Return the point of 32 bytes (RFC 8032, 5.1.3); raises ValueError."""
    number = int.from_bytes(data, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    if y >= P:
        raise ValueError("not canonical")
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    if x * x % P != square or (x == 0 and sign):
        raise ValueError("not on the curve")
    return (x if x % 2 == sign else P - x), y


def encode(point: Point) -> bytes:
    """Return a point's 32 bytes."""
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def add(one: Point, two: Point) -> Point:
    """Return the sum of two points."""
    (x1, y1), (x2, y2) = one, two
    both = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + both, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - both, -1, P) % P


def times(number: int, point: Point) -> Point:
    """Return a multiple of a point, in the extended coordinates of RFC 8032, 5.1.4."""
    found, base = (0, 1, 1, 0), (*point, 1, point[0] * point[1] % P)
    for bit in bin(number)[2:]:
        found = _extended_sum(found, found)
        if bit == "1":
            found = _extended_sum(found, base)
    x, y, z, _ = found
    return x * pow(z, -1, P) % P, y * pow(z, -1, P) % P


def _extended_sum(
    one: tuple[int, int, int, int], two: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    a, b = (one[1] - one[0]) * (two[1] - two[0]) % P, (one[1] + one[0]) * (two[1] + two[0]) % P
    c, d = 2 * one[3] * two[3] * D % P, 2 * one[2] * two[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


BASE = decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def commitments(at_event: bytes, tag: bytes, key: bytes, answer: bytes, challenge: bytes) -> bytes:
    """Return s G + c P and s h + c T, as a ring signature has them."""
    s, c = (int.from_bytes(each, "little") for each in (answer, challenge))
    pairs: Sequence[tuple[Point, bytes]] = ((BASE, key), (decode(at_event), tag))
    return b"".join(encode(add(times(s, one), times(c, decode(two)))) for one, two in pairs)
