"""The tree of commands: what the help shows of it, and names that a command had before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from typer.main import get_command

import unsee
from unsee.cli.app import HEADINGS, app
from unsee.cli.moved import GONE_IN, RENAMED, under_new_name

ROOT = get_command(app)


def below(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every group and command with its full name."""
    yield name, found
    for word, one in getattr(found, "commands", {}).items():
        yield from below(one, f"{name} {word}".strip())


TREE = dict(below(ROOT))


# Help -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREE)
def test_help_says_what_everything_is_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{name} --help") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"Usage: unsee {name}".strip())
    assert printed.err == ""
    assert not [line for line in printed.out.splitlines()[1:] if line.endswith("...")]  # nothing listed is cut short
    assert "--json" in printed.out or hasattr(TREE[name], "commands")
    assert all(option.help for option in TREE[name].params if option.name != "help")


def test_essentials_stand_first_and_groups_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(word for words in HEADINGS.values() for word in words) == sorted(ROOT.commands)  # type: ignore[attr-defined]
    assert run("--help") == 0
    shown = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z]+)  ", shown.partition("Commands:")[2], re.MULTILINE)
    assert listed == [word for words in HEADINGS.values() for word in words]
    essentials, groups = (re.search(rf"{heading}:\n((?:  .*\n)+)", shown) for heading in HEADINGS)
    assert essentials
    assert groups
    assert "  unlearn" in essentials[1]
    assert "  attack" in groups[1]
    assert "  attack" not in essentials[1]
    listing = shown[shown.index("Commands:") :].rstrip()
    assert f"```text\n{listing}\n```" in (Path(__file__).parents[1] / "README.md").read_text()


# Old names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_leads_to_a_command(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert old not in TREE  # so no help shows it
    assert new in TREE
    assert run(f"{new} --help") == 0
    expected = capsys.readouterr().out
    assert run(f"{old} --help") == 0
    printed = capsys.readouterr()
    assert printed.out == expected
    assert printed.err == f"unsee {old} is now `unsee {new}`; the old name goes with version {GONE_IN}\n"


def test_an_old_name_changes_nothing_but_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list families --json") == 0
    expected = capsys.readouterr()
    assert expected.err == ""
    assert run("families --json") == 0
    printed = capsys.readouterr()
    assert printed.out == expected.out
    assert printed.err.count("\n") == 1
    assert run("relearn") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert re.fullmatch("unsee: Missing option '--model'.*`unsee attack relearn --help`", said[1])


@pytest.mark.parametrize("name", ["frobnicate", "metric", "attack search", "benchmark miniature", "list audit"])
def test_an_unknown_name_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"unsee: No such command '{name.split()[-1]}'.*\n", printed.err)


def test_only_the_first_words_are_a_name() -> None:
    for arguments in (
        ["evaluate", "--out", "probe"],
        ["list", "metrics"],
        ["--help", "relearn"],
        ["metrics audit"],
        [],
    ):
        assert under_new_name(arguments) == (arguments, "")
    assert under_new_name(["metrics", "audit", "--out", "merge"])[0] == ["study", "audit", "--out", "merge"]
    assert under_new_name(["metrics", "--json"])[0] == ["list", "metrics", "--json"]


def test_old_names_go_when_they_were_said_to() -> None:
    major, minor = (tuple(map(int, version.split(".")[:2])) for version in (unsee.__version__, GONE_IN))
    assert major < minor, "remove unsee/cli/moved.py, its lines in `main`, this part of the tests and of docs/moved.md"


def test_the_page_lists_the_old_names() -> None:
    page = (Path(__file__).parents[1] / "docs/moved.md").read_text()
    assert dict(re.findall(r"^\| `unsee ([a-z ]+)` \| `unsee ([a-z ]+)` \|$", page, re.MULTILINE)) == RENAMED
    assert f"version {GONE_IN}" in page


def test_no_page_uses_an_old_name() -> None:
    root = Path(__file__).parents[1]
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("src/**/*.py")]
    old = re.compile(rf"\bunsee +({'|'.join(name.replace(' ', ' +') for name in RENAMED)})\b")
    history = {root / "docs/moved.md", root / "docs/LOG.md", root / "CHANGELOG.md"}
    found = {
        f"{page.relative_to(root)}: {line}"
        for page in pages
        if page not in history
        for line in page.read_text().splitlines()
        if old.search(line) and "import" not in line
    }
    assert found == set()
    assert old.search("see `unsee methods`")  # control
