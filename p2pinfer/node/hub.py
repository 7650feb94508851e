"""Models from Hugging Face, downloaded into the cache that its library and llama.cpp share.

The library's own download keeps nothing of a file that was not finished, so a download of 60 GB
would begin again. Here the bytes so far stay beside the blob, and the rest is asked for.
"""

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from p2pinfer.core.errors import P2pinferError, UserError
from p2pinfer.engine.store.disk import nearest_folder, size_text
from p2pinfer.engine.store.split import Progress
from p2pinfer.node.other_caches import hub_cache
from p2pinfer.node.published import (
    PublishedFile,
    PublishedModel,
    PublishedName,
    choose,
    variants,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ENDPOINT = "https://huggingface.co"
ASKING_S_MAX = 20.0
"""For a repository's list of files, which comes in one answer."""
NEAR_NAMES_MAX = 5
REPORTED_BYTES_MIN = 1 << 20
"""Downloaded between two calls that report progress."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubUnreachable(P2pinferError):
    """Hugging Face does not answer, or is not to be asked; the text does not say what to do."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that can be downloaded."""

    name: PublishedName
    variant: PublishedModel
    commit: str
    license: str | None
    folder: Path
    """The repository's in the cache."""

    @property
    def left_bytes(self) -> int:
        """Bytes that are not here yet."""
        return sum(file.nbytes - _begun_bytes(self.folder, file) for file in self.variant.files)


def offer(name: PublishedName) -> Offer:
    """Ask which files a name means, how large they are, and under which licence.

    Raises:
        HubUnreachable: nobody answers, or ``HF_HUB_OFFLINE`` is set.
        UserError: there is no such model, or it wants a licence accepted first.
    """
    api = _api()
    with _explained(name, api):
        info = api.model_info(name.repository, files_metadata=True, timeout=ASKING_S_MAX)
    files = [
        PublishedFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
    ]
    among = variants(files)
    if not among:
        raise UserError(f"{info.id} has no model in GGUF{_near(name, api)}")
    variant = choose(name, among)
    if not _COMMIT.fullmatch(info.sha or "") or not all(_is_safe(file) for file in variant.files):
        raise UserError(f"Hugging Face does not say what the files of {info.id} are")
    folder = hub_cache() / f"models--{info.id.replace('/', '--')}"
    card = info.card_data
    stated = (card.get("license_name") or card.get("license")) if card else None
    license_ = stated if isinstance(stated, str) else None
    return Offer(PublishedName(info.id).of(variant), variant, str(info.sha), license_, folder)


def _is_safe(file: PublishedFile) -> bool:
    """Whether a name stays in its folder, and the file has a SHA-256, as all large ones have."""
    is_inside = not any(part in ("", ".", "..") for part in file.path.split("/"))
    is_known = _SHA256.fullmatch(file.sha256 or "") is not None and file.nbytes > 0
    return is_inside and "\\" not in file.path and is_known


def download(offered: Offer, on_progress: Progress) -> Mapping[Path, str]:
    """Download what is missing of a model; return its files, each with its SHA-256, unchecked.

    Raises:
        HubUnreachable: the connection is gone; the same call resumes.
        UserError: the files may not be read, or do not fit.
    """
    folder = offered.folder
    free = shutil.disk_usage(nearest_folder(folder)).free
    if offered.left_bytes > free:
        raise UserError(
            f"{size_text(offered.left_bytes)} are needed in {hub_cache()} and {size_text(free)} are"
            " free: make room, or set HF_HOME to a directory on a larger disk"
        )
    bar = _bar(offered, on_progress)
    for file in offered.variant.files:
        blob = folder / "blobs" / str(file.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            try:
                _fetch(offered, file, blob, bar)
            except HubUnreachable as error:
                raise HubUnreachable(
                    f"its download ended early ({error}): the same command goes on from there"
                ) from error
    found = {}
    snapshot = folder / "snapshots" / offered.commit
    for file in offered.variant.files:
        link = snapshot / file.path
        _point(link, folder / "blobs" / str(file.sha256))
        found[link] = str(file.sha256)
    reference = folder / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(offered.commit)
    return found


def forget(paths: Sequence[Path]) -> None:
    """Remove downloaded files, so that they are downloaded again."""
    for path in paths:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _fetch(offered: Offer, file: PublishedFile, blob: Path, bar: type) -> None:
    """Download the rest of a file, and give it its name."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    api, repository = _api(), offered.name.repository
    if file.nbytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
        # Files as large as that are not given out over plain HTTP; the library has another way,
        # shows progress itself, and begins again where it was interrupted.
        with _explained(offered.name, api):
            hf_hub_download(
                repository,
                file.path,
                revision=offered.commit,
                cache_dir=hub_cache(),
                endpoint=api.endpoint,
            )
        return
    url = hf_hub_url(repository, file.path, revision=offered.commit, endpoint=api.endpoint)
    headers = build_hf_headers(library_name="p2pinfer") | {"accept-encoding": "identity"}
    with _partial(blob).open("ab") as begun:
        _lock(begun.fileno())
        if blob.exists():  # another process was quicker
            _partial(blob).unlink(missing_ok=True)
            return
        if begun.tell() > file.nbytes:  # others wrote to it
            begun.truncate(0)
        size = begun.seek(0, os.SEEK_END)
        with _explained(offered.name, api):
            http_get(
                url,
                begun,
                resume_size=size,
                headers=headers,
                expected_size=file.nbytes,
                tqdm_class=bar,
            )
        begun.flush()
        os.fsync(begun.fileno())
        _partial(blob).replace(blob)


def _lock(file: int) -> None:
    """Keep other processes of ours from writing to a file; raises UserError if one does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError("another p2pinfer process downloads this model: wait for it") from error


def _bar(offered: Offer, on_progress: Progress) -> type:
    """Return a class with which the library shows progress, of all files together."""
    total = offered.variant.nbytes
    done = total - offered.left_bytes
    said = -REPORTED_BYTES_MIN

    class Bar:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.update(0)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.update(0)

        def update(self, count: float | None = 1) -> None:
            """Count bytes."""
            nonlocal done, said
            done += int(count or 0)
            if abs(done - said) >= REPORTED_BYTES_MIN or done == total:
                said = done
                on_progress("downloading", done, total)

    return Bar


def _begun_bytes(folder: Path, file: PublishedFile) -> int:
    blob = folder / "blobs" / str(file.sha256)
    for path in (blob, _partial(blob)):
        try:
            return min(path.stat().st_size, file.nbytes)
        except OSError:
            continue
    return 0


def _partial(blob: Path) -> Path:
    """Return the name that llama.cpp and earlier versions of the library use, too."""
    return blob.with_name(f"{blob.name}.incomplete")


def _point(link: Path, blob: Path) -> None:
    """Let a snapshot's name lead to a blob."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and link.samefile(blob):
        return
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))


def _api() -> "HfApi":
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise HubUnreachable("HF_HUB_OFFLINE is set, so Hugging Face is not asked")
    # Else the library asks for a list of agents, to tell the server which one calls.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError(
            "models from Hugging Face need its library; type: pip install 'huggingface_hub~=2.4'"
        ) from error
    logger = logging.getLogger("huggingface_hub")
    logger.handlers, logger.propagate = [], True  # its lines look as ours do
    endpoint = os.environ.get("HF_ENDPOINT") or ENDPOINT
    return HfApi(endpoint=endpoint.rstrip("/"), library_name="p2pinfer")


def _near(name: PublishedName, api: "HfApi") -> str:
    """Say which repositories with GGUF files have a similar name."""
    words = name.repository.split("/")[1].lower().removesuffix("-gguf")
    with _explained(name, api):
        found = list(api.list_models(search=words, filter="gguf", limit=NEAR_NAMES_MAX))
    near = ", ".join(f"hf:{each.id}" for each in found if each.id != name.repository)
    return f"; with a similar name there are: {near}" if near else ""


@contextmanager
def _explained(name: PublishedName, api: "HfApi") -> Iterator[None]:
    """Turn the library's errors into ours."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name.repository} wants its licence accepted: accept it on"
            f" {api.endpoint}/{name.repository}, and set HF_TOKEN to a token of yours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        near = "" if error.response.request.url.path == "/api/models" else _near(name, api)
        raise UserError(
            f"Hugging Face has no {name.repository}, or shows it to its owners alone (then set"
            f" HF_TOKEN){near}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{name} names no model: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"Hugging Face refuses {name.repository} ({status}): set HF_TOKEN to a token that"
                " may read it"
            ) from error
        raise HubUnreachable(f"Hugging Face answers {status}") from error
    except HTTPError as error:
        raise HubUnreachable(f"{api.endpoint} cannot be reached: {error}") from error
    except OSError as error:
        if error.errno is not None:  # of the disk; the library's own have none
            raise
        raise HubUnreachable(str(error).splitlines()[0]) from error


def offered_text(offered: Offer) -> str:
    """Say what would be downloaded."""
    count = len(offered.variant.files)
    files = "one file" if count == 1 else f"{count} files"
    left, total = offered.left_bytes, offered.variant.nbytes
    rest = "" if left == total else f", of which {size_text(left)} are still missing"
    license_ = offered.license or "not stated"
    return f"{offered.name}: {size_text(total)} in {files}{rest}; licence: {license_}"
