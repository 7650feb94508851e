"""Files of addresses for --bootstrap."""

from pathlib import Path

import pytest

from p2pinfer.cli.address_files import LINES_MAX, without_files
from p2pinfer.cli.options import ReachFlags
from p2pinfer.cli.service import _anywhere
from p2pinfer.core.errors import EXIT_USAGE, UserError
from tests.support.command_line import run

ONE, TWO = "/ip4/203.0.113.7/tcp/1/p2p/a", "/dnsaddr/swarm.example.org"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Provide a file with two addresses."""
    path = tmp_path / "peers.txt"
    path.write_text(f"# our machines\n\n  {ONE}  # Anna's\r\n{TWO}")
    return path


def test_a_file_stands_for_its_lines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place, by either spelling; comments and empty lines do not count."""
    other = "/ip4/203.0.113.9/tcp/1/p2p/b"
    assert without_files([other, f"@{file}"]) == (other, ONE, TWO)
    assert without_files([str(file), other]) == (ONE, TWO, other)
    monkeypatch.chdir(file.parent)
    assert without_files([file.name]) == (ONE, TWO)
    assert ReachFlags().ways_in([f"@{file.name}"]) == (ONE, TWO)
    assert without_files([other, "nonsense", "x" * 5000]) == (other, "nonsense", "x" * 5000)


def test_a_service_finds_the_file_wherever_it_runs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its unit names the whole path."""
    monkeypatch.chdir(file.parent)
    assert [_anywhere(word) for word in ("@peers.txt", "peers.txt", "@none")] == [
        *(f"@{file}", str(file), "@none")
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no address: write one a line"),
        ("# nothing\n", "has no address"),
        (
            f"{ONE}\n\nbox.example.org\n",
            "line 3: 'box.example.org' is not an address such as /ip4/",
        ),
        (f"{ONE} {TWO}\n", "line 1: "),
        (f"{ONE}\n" * (LINES_MAX + 1), f"more than {LINES_MAX} addresses"),
        ("#" * 70_000, f"more than {LINES_MAX} addresses"),
        (b"\xff\xfe", r"cannot read the addresses in .* \(it is not text\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str | bytes, sentence: str, file: Path) -> None:
    """In one sentence that names it."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=sentence) as caught:
        without_files([f"@{file}"])
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that enters a swarm."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    for verb in ("join", "chat", "peers", "serve", "relay"):
        assert run(monkeypatch, verb, "--bootstrap", f"@{tmp_path}/none") == EXIT_USAGE
        said = capsys.readouterr().err
        assert f"cannot read the addresses in {tmp_path}/none (No such file" in said
