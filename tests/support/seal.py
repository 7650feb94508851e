"""Microsoft SEAL, through TenSEAL: another implementation of the scheme, to compare with.

TenSEAL has no way to put numbers into ciphertexts or keys. So ciphertexts go in by SEAL's own
file format, uncompressed: a header of 16 bytes, then what `seal/ciphertext.cpp` writes.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as api
from numpy.typing import NDArray

from p2pinfer.core.sums.parameters import STANDARD
from p2pinfer.core.sums.ring import Poly

PLAIN = 65_537
"""SEAL's plaintexts: it wants a modulus with no divisor of its ciphertexts'."""
KEY_PRIME = 268_189_697
"""SEAL keeps a prime for keys, which ciphertexts do without."""
_RING = STANDARD.ring


def context(primes: Sequence[int], level: Any) -> Any:
    """Return SEAL's context for a modulus, with its parameters judged at a level of security."""
    parameters = api.EncryptionParameters(api.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(STANDARD.degree)
    parameters.set_coeff_modulus([api.Modulus(prime) for prime in primes])
    parameters.set_plain_modulus(PLAIN)
    return api.SEALContext(parameters, True, level)


def _numbers(array: Any) -> list[int]:
    return [array.at(index) for index in range(array.size())]


class Seal:
    """SEAL with our modulus, and a key pair of its own.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        primes = (*_RING.primes, KEY_PRIME)
        # The key prime is beyond what the level allows, and not in what is compared.
        self._context = context(primes, api.SEC_LEVEL_TYPE.NONE)
        self._file = folder / "ciphertext"
        generator = api.KeyGenerator(self._context)
        self._secret, public = generator.secret_key(), api.PublicKey()
        generator.create_public_key(public)
        self._encryptor = api.Encryptor(self._context, public)
        self._evaluator = api.Evaluator(self._context)
        self._decryptor = api.Decryptor(self._context, self._secret)
        sample = api.Ciphertext()
        self._encryptor.encrypt_zero(sample)
        sample.save(str(self._file))
        self._version = self._file.read_bytes()[3:5]
        self._level = struct.pack("<4Q", *sample.parms_id())
        keys = np.array(_numbers(public.data().dyn_array()), np.uint64).reshape(2, -1)
        size = len(_RING) * STANDARD.degree
        secret = np.array(_numbers(self._secret.data().dyn_array()), np.uint64)[:size]
        self.public: Poly = self._coefficients(keys[:, :size])
        """(2, primes, N): b and a."""
        self.secret: Poly = self._coefficients(np.stack([secret, secret]))[0, 0]
        """(N,)."""

    def encrypt(self, numbers: NDArray[np.int64]) -> Any:
        """Return SEAL's ciphertext of (N,) numbers, modulo ``PLAIN``."""
        terms = (f"{value % PLAIN:X}x^{power}" for power, value in enumerate(numbers.tolist()))
        found = api.Ciphertext()
        self._encryptor.encrypt(api.Plaintext(" + ".join(reversed(list(terms)))), found)
        return found

    def add(self, ciphertexts: Sequence[Any]) -> Any:
        """Add some of them up, as SEAL does."""
        total = ciphertexts[0]
        for each in ciphertexts[1:]:
            self._evaluator.add_inplace(total, each)
        return total

    def read(self, ciphertext: Any) -> Poly:
        """Return what a ciphertext of SEAL's holds, (2, primes, N)."""
        values = np.array(_numbers(ciphertext.dyn_array()), np.float64)
        return _RING.reduced(values.reshape(2, len(_RING), -1))

    def decrypt(self, ciphertext: Poly) -> tuple[NDArray[np.int64], int]:
        """Return what SEAL finds in one of ours, (N,), and its noise budget in bits."""
        canonical = np.where(ciphertext < 0, ciphertext + _RING.moduli, ciphertext)
        loaded = self._load(canonical.astype(np.uint64), is_spectrum=False)
        plain = api.Plaintext()
        self._decryptor.decrypt(loaded, plain)
        found = np.zeros(STANDARD.degree, np.int64)
        values = _numbers(plain.dyn_array())
        found[: len(values)] = values
        return found, self._decryptor.invariant_noise_budget(loaded)

    def _coefficients(self, spectra: NDArray[np.uint64]) -> Poly:
        found = api.Ciphertext()
        self._evaluator.transform_from_ntt(self._load(spectra, is_spectrum=True), found)
        return self.read(found)

    def _load(self, values: NDArray[np.uint64], *, is_spectrum: bool) -> Any:
        numbers = struct.pack("<Q", values.size) + values.astype("<u8").tobytes()
        scale, correction = struct.pack("<d", 1.0), struct.pack("<Q", 1)
        sizes = struct.pack("<3Q", 2, STANDARD.degree, len(_RING))
        body = self._level + bytes([is_spectrum]) + sizes + scale + correction
        self._file.write_bytes(self._with_header(body + self._with_header(numbers)))
        found = api.Ciphertext()
        found.load(self._context, str(self._file))
        return found

    def _with_header(self, body: bytes) -> bytes:
        size = 16
        return struct.pack("<HB2sBHQ", 0xA15E, size, self._version, 0, 0, size + len(body)) + body
