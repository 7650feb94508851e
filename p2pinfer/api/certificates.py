"""Certificates of the newest answers, to be fetched after the answer."""

RECEIPTS_MAX = 1024
"""Certificates kept: some hours of one person's questions, or minutes of many people's."""

RECEIPTS_BYTES_MAX = 16 * 1024 * 1024
"""All of them together; one takes about 3 KB, more for long answers through many stages."""


class Receipts:
    """Certificates by the names of their answers; the oldest make room."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._bytes = 0

    def keep(self, name: str, certificate: bytes) -> None:
        """Keep one."""
        self._kept[name] = certificate
        self._bytes += len(certificate)
        while len(self._kept) > RECEIPTS_MAX or self._bytes > RECEIPTS_BYTES_MAX:
            oldest = next(iter(self._kept))
            self._bytes -= len(self._kept.pop(oldest))

    def find(self, name: str) -> bytes | None:
        """Return one, unless it made room or never was."""
        return self._kept.get(name)


def receipt_name(request: str, choice: int) -> str:
    """Return what the certificate of one of a request's answers is called."""
    return f"{request}.{choice}" if choice else request


def receipt_link(name: str) -> str:
    """Return where a certificate is fetched."""
    return f"/api/receipts/{name}"
