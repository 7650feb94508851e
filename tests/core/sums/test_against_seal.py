"""SEAL and we read each other's keys and ciphertexts, and SEAL agrees on security and noise."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenseal", reason="SEAL is not there for this Python or system")

import tenseal.sealapi as api

from p2pinfer.core.sums.chance import ternary
from p2pinfer.core.sums.parameters import ERROR_HALVES, MEMBERS_MAX, STANDARD
from p2pinfer.core.sums.threshold import PublicKey, Sharer, deal
from tests.support.seal import KEY_PRIME, PLAIN, Seal, context
from tests.support.small_sums import drawing

RING = STANDARD.ring


@pytest.fixture(scope="module")
def seal(tmp_path_factory: pytest.TempPathFactory) -> Seal:
    """Return SEAL with a key pair."""
    folder: Path = tmp_path_factory.mktemp("seal")
    return Seal(folder)


def lifted(total: np.ndarray) -> list[int]:
    """Return (primes, N) residues as whole numbers modulo q, by hand."""
    modulus = STANDARD.modulus
    weights = [modulus // p * pow(modulus // p, -1, p) for p in RING.primes]
    columns = total.astype(int).T.tolist()
    return [sum(map(int.__mul__, column, weights)) % modulus for column in columns]


def test_seal_finds_the_modulus_small_enough_for_128_bits() -> None:
    """And one more prime too many."""
    level = api.SEC_LEVEL_TYPE.TC128
    assert context(RING.primes, level).parameters_set()
    larger = context((*RING.primes, KEY_PRIME), level)
    assert not larger.parameters_set()
    assert "secur" in larger.parameters_error_message()


def test_its_secret_fits_its_public_key_in_our_ring(seal: Seal) -> None:
    """Of all primes, b + a s is one small error: products are as SEAL has them."""
    assert set(np.unique(seal.secret)) == {-1, 0, 1}
    b, a = seal.public
    error = RING.reduced(b + RING.times_small(RING.spectrum(a), RING.spectrum(seal.secret)))
    assert np.abs(error).max() <= ERROR_HALVES
    np.testing.assert_array_equal(error, np.broadcast_to(error[0], error.shape))
    assert abs(error[0].var() - ERROR_HALVES / 2) < 1


def test_our_members_open_sums_of_seal(seal: Seal) -> None:
    """What SEAL encrypts and adds up, any three of five open with shares of SEAL's secret."""
    chance = np.random.default_rng(5)
    plain = [chance.integers(0, PLAIN, STANDARD.degree) for _ in range(8)]
    total = seal.read(seal.add([seal.encrypt(each) for each in plain]))
    held = list(deal(STANDARD, seal.secret, 5, 3, drawing(6)))
    who = (4, 0, 2)
    found = total[0].copy()
    for member in who:
        found += Sharer(STANDARD, member, held[member], who).share(total[1], (), drawing(member))
    modulus = STANDARD.modulus
    numbers = [(2 * PLAIN * x + modulus) // (2 * modulus) % PLAIN for x in lifted(found)]
    np.testing.assert_array_equal(numbers, sum(plain) % PLAIN)


def test_seal_opens_our_sums_and_measures_our_noise(seal: Seal) -> None:
    """What we encrypt for SEAL's key and add up, SEAL decrypts, with the noise we compute."""
    b, a = seal.public
    key, draw = PublicKey(STANDARD, a, b), drawing(7)
    none = np.zeros((len(STANDARD.payload), STANDARD.degree), np.int64)
    total = RING.reduced(np.sum([key.encrypt(none, draw) for _ in range(MEMBERS_MAX)], axis=0))
    numbers = np.random.default_rng(8).integers(0, PLAIN, STANDARD.degree)
    scaled = RING.scaled(
        np.broadcast_to(numbers.astype(np.float64), (len(RING), STANDARD.degree)),
        [STANDARD.modulus // PLAIN] * len(RING),
    )
    total[0] = RING.reduced(total[0] + scaled)
    found, budget = seal.decrypt(total)
    np.testing.assert_array_equal(found, numbers)
    room = math.log2(STANDARD.modulus / PLAIN / 2)
    # One key here, so an eighth of what 64 members' keys would leave, and less what is never seen.
    noise = math.log2(STANDARD.sum_noise(MEMBERS_MAX) / 8)
    assert room - noise - 1 <= budget <= room - noise + 4


def test_a_wrong_secret_opens_nothing(seal: Seal) -> None:
    """The comparison can fail: with another secret SEAL's sum is noise."""
    total = seal.read(seal.encrypt(np.arange(STANDARD.degree) % PLAIN))
    wrong = ternary(drawing(9), STANDARD.degree)
    product = RING.times_small(RING.spectrum(total[1]), RING.spectrum(wrong))
    modulus = STANDARD.modulus
    spread = np.array(lifted(RING.reduced(total[0] + product))[:500], object) / modulus
    assert 0.2 < float(np.std(spread.astype(float))) < 0.4
