"""Settings: what counts for more than what, what the file may say, and what is said of mistakes."""

import json
from pathlib import Path

import pytest

from p2pinfer.cli import main
from p2pinfer.cli.config_file import option_names
from p2pinfer.core.errors import EXIT_USAGE
from tests.support.command_line import run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file of settings, which is not there yet."""
    monkeypatch.setenv("P2PINFER_HOME", str(tmp_path))
    return tmp_path / "config.toml"


def settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> dict[str, tuple[object, str]]:
    """Return what each option of a command is set to, and by what."""
    assert run(monkeypatch, "config", "--json", *words) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    return {each["option"]: (each["value"], each["source"]) for each in options}


def test_flags_before_variables_before_the_file_before_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For each option by itself; a command's own lines before those for all."""
    file.write_text(
        'sessions = 2\ncontext = 512\nthreads = 1\nbootstrap = ["/a", "/b"]\nmdns = true\n'
        'log-level = "info"\n[join]\nmemory = "2GiB"\ncontext = 256\n[chat]\nsessions = 3\n'
    )
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


def test_commands_run_with_what_the_file_says(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not only ``config`` reads it; lines for other commands are no trouble."""
    file.write_text("json = true\n[join]\nsessions = 3\n[model.add]\nquota = '3GB'\n")
    assert run(monkeypatch, "ps") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_settings_are_shown_once_for_all_commands_that_agree(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Secrets are not; for a person each has its source."""
    monkeypatch.setenv("P2PINFER_API_KEY", "very secret")
    monkeypatch.setenv("P2PINFER_TOP_K", "7")
    assert run(monkeypatch, "config") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"file  {file} (not there)\n")
    assert "very secret" not in said
    lines = [line.split() for line in said.splitlines()]
    assert ["--top-k", "7", "P2PINFER_TOP_K"] in lines
    assert ["--sessions", "24", "default", "(serve)"] in lines
    assert ["--network", "main", "default"] in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sesions = 4", "no option 'sesions'; did you mean 'sessions'?"),
        ("[jion]\nsessions = 4", "[jion] is no command"),
        ("[join]\ntop-k = 4", "no option 'top-k'"),
        ("[model.ad]\nquota = 'x'", "[ad] is no command"),
        ("[--help]\nx = 1", "[--help] is no command"),
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
def test_mistakes_in_the_file_are_said_in_a_sentence(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    said: str,
) -> None:
    """With the file's name, whatever the command."""
    file.write_text(text, encoding="latin-1")
    assert run(monkeypatch, "join", "--layers", "nonsense") == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert str(file) in line


def test_the_file_can_be_named_and_left_out(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One that is named must be there; a name of nothing reads none."""
    file.write_text("nonsense = 1")
    other = tmp_path / "other"
    monkeypatch.setenv("P2PINFER_CONFIG", str(other))
    assert run(monkeypatch, "ps") == EXIT_USAGE
    assert "there is no such file" in capsys.readouterr().err
    other.write_text("[chat]\nnetwork = 'home'")
    assert settings(monkeypatch, capsys, "chat")["--network"] == ("home", "file")
    monkeypatch.setenv("P2PINFER_CONFIG", "")
    assert settings(monkeypatch, capsys, "chat")["--network"] == ("main", "default")


def test_a_file_that_cannot_be_read_is_said(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But where there can be none, whoever needs the directory says what is wrong with it."""
    file.mkdir()
    assert run(monkeypatch, "ps") == EXIT_USAGE
    assert f"cannot read the settings in {file} (Is a directory)" in capsys.readouterr().err
    monkeypatch.setenv("P2PINFER_HOME", str(file / "nowhere" / "x"))
    assert run(monkeypatch, "config") == 0
    (file / "text").touch()
    monkeypatch.setenv("P2PINFER_HOME", str(file / "text"))
    assert run(monkeypatch, "ps") == EXIT_USAGE
    assert "cannot keep anything in" in capsys.readouterr().err


def test_every_command_is_where_it_is_said_to_be() -> None:
    """Each is loaded, and knows its options."""
    assert {"--memory", "--bootstrap", "--log-level", "--quota"} <= option_names(main.app)
    assert "--until-stdin-closes" not in option_names(main.app)


def test_question_behind_an_address_is_a_question(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the line that join prints, with a question typed behind it; addresses may follow."""
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
