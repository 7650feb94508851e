"""Settings: precedence, what the file may hold, and errors about mistakes in it."""

import json
from pathlib import Path

import pytest

from p2pinfer.cli import main
from p2pinfer.cli.config_file import option_names
from p2pinfer.core.errors import EXIT_USAGE
from tests.support.command_line import run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the settings file, which does not exist yet."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    return tmp_path / "config.toml"


def settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, tuple[object, str]]:
    """Return each option's value, and its source."""
    assert run(monkeypatch, "config", "--json", *words) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    return {each["option"]: (each["value"], each["source"]) for each in options}


def test_flags_override_variables_override_the_file_overrides_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For each option separately; a command's own table overrides the lines for all commands."""
    file.write_text(
        'sessions = 2\ncontext = 512\nthreads = 1\nbootstrap = ["/a", "/b"]\nmdns = true\n'
        'log-level = "info"\n[join]\nmemory = "2GiB"\ncontext = 256\n[chat]\nsessions = 3\n'
    )
    monkeypatch.delenv("P2PINFER_MDNS")
    monkeypatch.setenv("P2PINFER_SESSIONS", "5")
    monkeypatch.setenv("P2PINFER_MEMORY", "1GiB")
    found = settings(monkeypatch, capsys, "join", "--memory", "4GiB", "--only-idle")
    assert found["--memory"] == ("4GiB", "flag")
    assert found["--only-idle"] == (True, "flag")
    assert found["--sessions"] == ("5", "environment")
    assert found["--context"] == ("256", "file")
    assert found["--bootstrap"] == (["/a", "/b"], "file")
    assert found["--mdns"] == ("true", "file")
    assert found["--log-level"] == ("info", "file")
    assert found["--network"] == ("main", "default")
    monkeypatch.delenv("P2PINFER_SESSIONS")
    assert settings(monkeypatch, capsys, "chat")["--sessions"] == ("3", "file")
    assert settings(monkeypatch, capsys, "serve")["--sessions"] == ("2", "file")


def test_commands_use_the_files_settings(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only ``config`` reads it; settings of other commands do no harm."""
    file.write_text("json = true\n[join]\nsessions = 3\n[model.add]\nquota = '3GB'\n")
    assert run(monkeypatch, "ps") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_setting_that_commands_share_is_shown_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is shown with its source, and secrets are not shown."""
    monkeypatch.setenv("P2PINFER_API_KEY", "very secret")
    monkeypatch.setenv("P2PINFER_TOP_K", "7")
    assert run(monkeypatch, "config") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"file  {file} (does not exist)\n")
    assert "very secret" not in said
    lines = [line.split() for line in said.splitlines()]
    assert ["--top-k", "7", "P2PINFER_TOP_K"] in lines
    assert ["--sessions", "24", "default", "(serve)"] in lines
    assert ["--network", "main", "default"] in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sesions = 4", "no option 'sesions'; did you mean 'sessions'?"),
        ("[jion]\nsessions = 4", "[jion] is not a command"),
        ("[join]\ntop-k = 4", "no option 'top-k'"),
        ("[model.ad]\nquota = 'x'", "[ad] is not a command"),
        ("[--help]\nx = 1", "[--help] is not a command"),
        ("sessions = [1, 2]", "sessions must be text, a number, true or false"),
        ("sessions = 1979-05-27", "sessions must be text"),
        ("bootstrap = [[1]]", "or a list of them"),
        ("sessions = 'many'", 'unable to convert "many" into int'),
        ("log-level = 'loud'", 'Invalid value "loud" for --log-level'),
        ("x = ", "is not TOML"),
        ("x = '\xff'", "is not TOML"),
        ("#" * (1 << 20) + "\n", "more than 1 MiB"),
    ],
)
def test_mistakes_in_the_file_are_reported_in_one_sentence(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    said: str,
) -> None:
    """It names the file, whatever the command."""
    file.write_text(text, encoding="latin-1")
    assert run(monkeypatch, "join", "--layers", "nonsense") == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(file) in line


def test_another_file_or_none_can_be_chosen(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file that P2PINFER_CONFIG names must exist; an empty name reads no file."""
    file.write_text("nonsense = 1")
    other = tmp_path / "other"
    monkeypatch.setenv("P2PINFER_CONFIG", str(other))
    assert run(monkeypatch, "ps") == EXIT_USAGE
    assert "which does not exist" in capsys.readouterr().err
    other.write_text("[chat]\nnetwork = 'home'")
    assert settings(monkeypatch, capsys, "chat")["--network"] == ("home", "file")
    monkeypatch.setenv("P2PINFER_CONFIG", "")
    assert settings(monkeypatch, capsys, "chat")["--network"] == ("main", "default")


def test_an_unreadable_file_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there cannot be a file, only commands that need the directory fail."""
    file.mkdir()
    assert run(monkeypatch, "ps") == EXIT_USAGE
    assert f"cannot read the settings in {file} (Is a directory)" in capsys.readouterr().err
    monkeypatch.setenv("P2PINFER_HOME", str(file / "nowhere" / "x"))
    assert run(monkeypatch, "config") == 0
    (file / "text").touch()
    monkeypatch.setenv("P2PINFER_HOME", str(file / "text"))
    assert run(monkeypatch, "ps") == EXIT_USAGE
    assert "cannot keep anything in" in capsys.readouterr().err


def test_every_command_loads() -> None:
    """From its place in the table, with its options."""
    assert {"--memory", "--bootstrap", "--log-level", "--quota"} <= option_names(main.app)
    assert "--until-stdin-closes" not in option_names(main.app)


def test_a_prompt_may_follow_an_address(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a prompt is added to the line that join prints; further addresses may follow."""
    one, two = "/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/1"
    assert main.spread(["chat", "--bootstrap", one, two, "Hi /there", "--json"]) == [
        *["chat", "--bootstrap", one, "--bootstrap", two, "Hi /there", "--json"]
    ]
    found = settings(monkeypatch, capsys, "chat", "--bootstrap", one, two, "What is 1/2?", "--mdns")
    assert found["--bootstrap"] == ([one, two], "flag")
    assert found["--mdns"] == (True, "flag")
    main.parse(["chat", f"--bootstrap={one}", two, "What is 1/2?"])
    assert run(monkeypatch, "chat", "--bootstrap", one, "Why is", "the sky blue?") == EXIT_USAGE
    assert "unexpected argument 'the sky blue?'" in capsys.readouterr().err
