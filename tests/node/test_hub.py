"""Models by their names on Hugging Face: from caches, or from a hub on loopback."""

import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from p2pinfer.core.errors import BadModelFile, UserError
from p2pinfer.core.ids import ModelId
from p2pinfer.node import hub, model_supply
from p2pinfer.node.hub import HubUnreachable, download, offer
from p2pinfer.node.model_supply import check_named, locate, name_model, open_store, open_whole
from p2pinfer.node.other_caches import find_downloaded, hub_cache
from p2pinfer.node.published import PublishedName, parse_published
from tests.support.fake_hub import COMMIT, FakeHub, fake_hub
from tests.support.model_factory import write_model
from tests.support.recipes import CASES
from tests.support.sharded import write_shards
from tests.support.toys import quiet, write_toy

NAME = PublishedName("owner/Toy-GGUF", "Q8_0")
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep everything in the test's own directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path / "home"))
    for name in (*VARIABLES, "OLLAMA_MODELS", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a hub."""
    with fake_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def toy(home: Path) -> bytes:
    """Give a small model's file."""
    return write_toy(home / "toy.gguf").read_bytes()


def agree(name: PublishedName, on_progress: Callable[[str, int, int], None]) -> dict[Path, str]:
    """Download without a question."""
    return dict(download(offer(name), on_progress))


def test_a_download_is_checked_served_in_place_and_found_again(fake: FakeHub, toy: bytes) -> None:
    """Nothing large is stored twice, other programs find it, and the name works offline later."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy, "README.md": b"#"}
    said: list[tuple[str, int, int]] = []
    store = open_store()
    offered = offer(NAME)
    assert (offered.license, offered.left_bytes) == ("apache-2.0", len(toy))
    assert hub.offered_text(offered) == (
        "hf:owner/Toy-GGUF:Q8_0: 0.0 MB in one file; licence: apache-2.0"
    )
    model = name_model(str(NAME), store, lambda *each: said.append(each), agree)
    assert open_whole(model, store).id == model
    link = hub_cache() / "models--owner--Toy-GGUF" / "snapshots" / COMMIT / "Toy-Q8_0.gguf"
    assert link.resolve().name == hashlib.sha256(toy).hexdigest()
    manifest = store.manifest(model)
    assert manifest
    assert store.sources(manifest.parts) == [link.resolve()]
    assert [each for each in said if each[0] == "downloading"][-1][1:] == (len(toy), len(toy))
    fake.repositories.clear()
    said.clear()
    for name in ("hf:owner/Toy-GGUF", "hf.co/owner/toy-gguf:q8_0", "owner/Toy-GGUF@q8_0"):
        assert name_model(name, store, lambda *each: said.append(each)) == model
    assert said == []
    (found,) = find_downloaded()
    assert (found.program, found.name, list(found.sha256)) == ("Hugging Face", NAME, [link])


def test_the_library_finds_what_was_downloaded(fake: FakeHub, toy: bytes) -> None:
    """The cache is laid out as Hugging Face's own library lays it out."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    (path,) = agree(NAME, quiet)
    found = huggingface_hub.try_to_load_from_cache(NAME.repository, path.name, hub_cache())
    assert Path(found) == path
    scanned = huggingface_hub.scan_cache_dir(hub_cache())
    assert [repo.repo_id for repo in scanned.repos] == [NAME.repository]
    assert not scanned.warnings


def test_shards(fake: FakeHub, home: Path) -> None:
    """All of a model's shards are downloaded, into one folder; its id is the unsplit file's."""
    whole = home / "whole.gguf"
    write_model(CASES["qwen2moe"].recipe, whole)
    shards = write_shards(whole, home / "shards", tensors_max=30, name="Tiny-F32")
    fake.repositories["owner/Tiny"] = {f"F32/{path.name}": path.read_bytes() for path in shards}
    store = open_store()
    model = name_model("hf:owner/Tiny:F32", store, quiet, agree)
    assert len(fake.ranges) == len(shards) > 2
    assert model == name_model(str(whole), store, quiet)
    wrong = next(iter(agree(PublishedName("owner/Tiny"), quiet))).resolve()
    assert len(fake.ranges) == len(shards)
    store.remove(ModelId(model))
    wrong.write_bytes(wrong.read_bytes()[:-1] + b"?")
    with pytest.raises(BadModelFile, match="another SHA-256 than its publisher states: remove it"):
        name_model("hf:owner/Tiny:F32", store, quiet)


def test_a_cut_connection_is_resumed(
    fake: FakeHub, toy: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once while the process runs, and by the next one from what is on disk."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    fake.cut_at = 1000
    agree(NAME, quiet)
    assert fake.ranges == [None, "bytes=1000-"]


def test_a_lost_connection_says_how_to_go_on(
    fake: FakeHub, toy: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library gives up, what arrived is kept."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}

    def hang_up(_: str, done: int, __: int) -> None:
        if done:
            raise httpx2.ReadError("connection reset")

    with pytest.raises(UserError, match=r"and its download ended early \(.* reset\): the same"):
        name_model(str(NAME), open_store(), hang_up, agree)
    monkeypatch.setattr("p2pinfer.node.hub.REPORTED_BYTES_MIN", 0)
    with pytest.raises(UserError, match="ended early"):
        name_model(str(NAME), open_store(), hang_up, agree)
    agree(NAME, quiet)
    assert fake.ranges[0] is None
    assert fake.ranges[-1]


def test_two_processes_do_not_write_to_one_file(fake: FakeHub, toy: bytes) -> None:
    """The second is told to wait; a file that was finished meanwhile is taken."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    blobs = hub_cache() / "models--owner--Toy-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    blob = blobs / hashlib.sha256(toy).hexdigest()
    with (blobs / f"{blob.name}.incomplete").open("ab") as begun:
        fcntl.flock(begun.fileno(), fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another p2pinfer process downloads this model"):
            agree(NAME, quiet)
    offered = offer(NAME)
    blob.write_bytes(toy)
    hub._fetch(offered, offered.variant.files[0], blob, object)
    assert list(blobs.iterdir()) == [blob]
    assert fake.ranges == []


def test_a_later_process_resumes(fake: FakeHub, toy: bytes) -> None:
    """What is missing is told before; bytes beyond the file's length are not kept."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    blobs = hub_cache() / "models--owner--Toy-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    begun = blobs / f"{hashlib.sha256(toy).hexdigest()}.incomplete"
    begun.write_bytes(toy[:5000])
    assert offer(NAME).left_bytes == len(toy) - 5000
    assert "of which 0.0 MB are still missing" in hub.offered_text(offer(NAME))
    said: list[int] = []
    (path,) = agree(NAME, lambda _, done, __: said.append(done))
    assert fake.ranges == ["bytes=5000-"]
    assert said[0] == 5000
    assert path.read_bytes() == toy
    assert [each.name for each in blobs.iterdir()] == [hashlib.sha256(toy).hexdigest()]
    path.resolve().unlink()
    begun.write_bytes(toy + b"more")
    (path,) = agree(NAME, quiet)
    assert path.read_bytes() == toy


def test_files_too_large_for_plain_http_are_left_to_the_library(
    fake: FakeHub, toy: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the same cache, and the very commit whose SHA-256 is checked."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    blob = hub_cache() / "models--owner--Toy-GGUF" / "blobs" / hashlib.sha256(toy).hexdigest()
    asked = []

    def library_download(*names: str, **more: object) -> None:
        asked.append((*names, more["revision"], more["cache_dir"], more["endpoint"]))
        blob.write_bytes(toy)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", library_download)
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", len(toy) - 1)
    (path,) = agree(NAME, quiet)
    assert path.resolve() == blob.resolve()
    assert asked == [(NAME.repository, "Toy-Q8_0.gguf", COMMIT, hub_cache(), fake.url)]
    assert fake.ranges == []


def test_an_interrupted_download_keeps_what_arrived(fake: FakeHub, toy: bytes) -> None:
    """Ctrl-C, here from the progress, loses nothing."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}

    def interrupt(_: str, done: int, __: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        agree(NAME, interrupt)
    blobs = hub_cache() / "models--owner--Toy-GGUF" / "blobs"
    assert any(path.suffix == ".incomplete" for path in blobs.iterdir())
    agree(NAME, quiet)


def test_a_wrong_byte_is_found_and_removed(fake: FakeHub, toy: bytes) -> None:
    """The next try downloads the file again."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    fake.flipped.add("Toy-Q8_0.gguf")
    store = open_store()
    with pytest.raises(BadModelFile, match=r"Toy-Q8_0\.gguf arrived damaged.* run the same again"):
        name_model(str(NAME), store, quiet, agree)
    assert store.models() == []
    assert find_downloaded() == []
    assert name_model(str(NAME), store, quiet, agree)
    assert fake.ranges == [None, None]


def test_a_gated_model_says_what_to_accept(
    fake: FakeHub, toy: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a token it is downloaded."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    fake.gated = True
    with pytest.raises(UserError, match=rf"accept it on {fake.url}/owner/Toy-GGUF, and set HF_TOK"):
        agree(NAME, quiet)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    agree(NAME, quiet)
    assert fake.tokens[-1] == "Bearer hf_secret"


def test_an_unknown_model_lists_near_names(fake: FakeHub, toy: bytes) -> None:
    """So does a repository without GGUF files; an unknown quantisation lists those that exist."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy, "Toy-Q4_0.gguf": toy[:-9]}
    fake.repositories["other/Toy"] = {"model.safetensors": b"weights"}
    with pytest.raises(UserError, match=r"Hugging Face has no owner/toy, .* hf:owner/Toy-GGUF"):
        offer(PublishedName("owner/toy"))
    with pytest.raises(UserError, match=r"other/Toy has no model in GGUF.* hf:owner/Toy-GGUF"):
        offer(PublishedName("other/Toy"))
    assert fake.searches == ["toy", "toy"]
    with pytest.raises(UserError, match=r"has no Q3_K; it has: Q4_0 .*, Q8_0 "):
        offer(PublishedName("owner/Toy-GGUF", "Q3_K"))
    with pytest.raises(UserError, match=r"^Hugging Face has no a/b, or shows .*HF_TOKEN\)$"):
        offer(PublishedName("a/b"))


def test_names_that_would_leave_the_cache_are_refused(fake: FakeHub, toy: bytes) -> None:
    """The hub is not trusted with paths."""
    fake.repositories["owner/Toy-GGUF"] = {"../../Toy-Q8_0.gguf": toy}
    with pytest.raises(UserError, match="does not say what the files of owner/Toy-GGUF are"):
        offer(NAME)


def test_offline(monkeypatch: pytest.MonkeyPatch, home: Path, toy: bytes) -> None:
    """What is there is said: other variants of the repository, or how to list all models."""
    with pytest.raises(UserError, match=r"hf:owner/Toy-GGUF:Q8_0 is not on this machine, and http"):
        name_model(str(NAME), open_store(), quiet, agree)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set"):
        offer(NAME)
    folder = home / ".lmstudio" / "models" / "owner" / "Toy-GGUF"
    folder.mkdir(parents=True)
    (folder / "Toy-Q4_0.gguf").write_bytes(toy)
    with pytest.raises(UserError, match=r"not asked; of the same repo.* hf:owner/Toy-GGUF:Q4_0$"):
        name_model(str(NAME), open_store(), quiet, agree)
    with pytest.raises(
        UserError, match=r"hf:a/b is not on this machine; p2pinfer model find lists .*; to do"
    ):
        name_model("hf:a/b", open_store(), quiet)


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra; what is in caches is found without it."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="need its library; type: pip install 'huggingface_hub~=2"):
        offer(NAME)
    assert find_downloaded() == []


def test_the_disk_must_have_room(
    fake: FakeHub, toy: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first byte."""
    fake.repositories["owner/Toy-GGUF"] = {"Toy-Q8_0.gguf": toy}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match="are free: make room, or set HF_HOME"):
        agree(NAME, quiet)
    assert fake.ranges == []


def test_a_cache_of_each_program(home: Path, toy: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is used where it lies, by a name that works for all of them."""
    sha256 = hashlib.sha256(toy).hexdigest()
    named = home / "named"
    hugging_face = home / ".cache/huggingface/hub/models--a--Toy-GGUF"
    (hugging_face / "blobs").mkdir(parents=True)
    (hugging_face / "blobs" / sha256).write_bytes(toy)
    snapshot = hugging_face / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "Toy-Q8_0.gguf").symlink_to(f"../../blobs/{sha256}")
    (snapshot / "Toy-Q4_0.gguf").symlink_to("../../blobs/gone")
    llama = home / ".cache/llama.cpp"
    llama.mkdir(parents=True)
    (llama / "b_Toy_9-GGUF_Toy-Q8_0.gguf").write_bytes(toy + b"1")
    studio = home / ".lmstudio/models/c/Toy-GGUF"
    studio.mkdir(parents=True)
    (studio / "Toy-Q8_0.gguf").write_bytes(toy + b"2")
    (studio / "mmproj-F16.gguf").write_bytes(b"")
    for path, data in (
        ("hf.co/d/Toy-GGUF/Q8_0", b"3"),
        ("registry.ollama.ai/library/toy/1b", b"4"),
    ):
        digest = hashlib.sha256(toy + data).hexdigest()
        manifest = named / "manifests" / path
        manifest.parent.mkdir(parents=True)
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
        manifest.write_text(json.dumps({"layers": [{"mediaType": "x", "digest": "y"}, layer]}))
        (named / "blobs").mkdir(exist_ok=True)
        (named / "blobs" / f"sha256-{digest}").write_bytes(toy + data)
    (named / "manifests/registry.ollama.ai/library/toy/bad").write_text("[]")
    monkeypatch.setenv("OLLAMA_MODELS", str(named))
    found = find_downloaded()
    assert [(each.program, each.title) for each in found] == [
        ("Hugging Face", "a/Toy-GGUF/Toy-Q8_0.gguf"),
        ("LM Studio", "c/Toy-GGUF/Toy-Q8_0.gguf"),
        ("Ollama", "hf.co/d/Toy-GGUF:Q8_0"),
        ("Ollama", "toy:1b"),
        ("llama.cpp", "b_Toy_9-GGUF_Toy-Q8_0.gguf"),
    ]
    assert [bool(each.sha256) for each in found] == [True, False, True, True, False]
    for owner, where in zip(
        ("a", "c", "d", "b"), (found[0], found[1], found[2], found[4]), strict=True
    ):
        repository = "Toy_9-GGUF" if owner == "b" else "Toy-GGUF"
        for text in (f"hf:{owner}/{repository}", f"{owner}/{repository}@Q8_0"):
            assert locate(text, quiet).path == where.path
    model = name_model("hf:a/Toy-GGUF", open_store(), quiet)
    assert name_model(str(found[3].path), open_store(), quiet) == model


def test_a_path_that_exists_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have a name that looks like a published one."""
    monkeypatch.chdir(home)
    (home / "o").mkdir()
    path = write_toy(home / "o" / "toy.gguf").rename(home / "o" / "r@q8")
    assert name_model("o/r@q8", open_store(), quiet) == name_model(str(path), open_store(), quiet)


def test_early_checks_know_published_names() -> None:
    """A missing file that looks like a repository's name gets a hint."""
    check_named("hf:o/r")
    check_named("o/r@q4_0")
    with pytest.raises(BadModelFile, match=r"name a GGUF file, or hf:o/r for a model on Hugging"):
        check_named("o/r")
    with pytest.raises(BadModelFile, match=r"name a GGUF file; what is here: p2pinfer model list"):
        check_named("nowhere.gguf")
    assert parse_published("o/r") is None
    assert model_supply.model_path("nowhere.gguf") == Path("nowhere.gguf")
