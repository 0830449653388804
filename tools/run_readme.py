"""Run the snippets of markdown pages, so that what the documentation shows is what works.

    python tools/run_readme.py README.md docs/*.md

Every fenced `bash`, `console` and `python` snippet runs, from top to bottom, with this interpreter's environment first
in PATH. Each page gets one temporary folder that looks like the repository as it stands (files git ignores left out),
so a snippet finds what earlier ones wrote and the repository itself stays untouched. Each snippet is its own process:
variables do not pass from one to the next. In `console` snippets the lines after `$ ` run (and `> ` continues them);
the others are shown output and are not compared. Comments directly above a snippet change how it runs:

    <!-- not run: REASON -->   skip it, and print the reason
    <!-- run in: repo -->      run it in a clone, with the working tree's changes but no environment (for `make`);
                               the page's later snippets with this comment share the clone
    <!-- exit: 2 -->           expect this exit code

After a failure the rest of that page is not reached, and the next page begins. Exit code 0: all passed; 1: a snippet
failed; 2: a page cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("bash", "console", "python")
MEANT = {"sh": "bash", "shell": "bash", "zsh": "bash", "shell-session": "console", "py": "python", "python3": "python"}
FENCE = re.compile(r"(?P<indent>[\s>]*)(?P<fence>`{3,}|~{3,})\s*(?P<info>[^`]*)")
COMMENT = re.compile(r"\s*<!--\s*(?P<key>not run|run in|exit)\s*(?::\s*(?P<value>.*?))?\s*-->\s*")


class BadPage(Exception):
    """A page that cannot be run as it is written; the message names the line and the fix."""


@dataclass(frozen=True)
class Snippet:
    page: Path
    line: int  # of its opening fence
    language: str
    code: str  # padded with empty lines, so that line numbers in tracebacks are those of the page
    reason: str | None = None  # why it is not run
    in_clone: bool = False
    exit_code: int = 0


def snippets_of(page: Path, text: str) -> list[Snippet]:
    """The snippets of one page, in order.

    Raises:
        BadPage: a comment that no snippet follows, or that makes no sense; an unclosed fence; a snippet that would be
            left out silently.
    """
    found: list[Snippet] = []
    comments: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        here = f"{page}:{number}"
        if comment := COMMENT.fullmatch(line):
            comments[comment["key"]] = _checked(comment["key"], comment["value"] or "", here)
            continue
        opening = FENCE.fullmatch(line)
        words = opening["info"].split() if opening else []
        language = words[0] if words else ""
        if comments and language not in LANGUAGES:
            raise BadPage(f"{here}: '{next(iter(comments))}' stands above no {', '.join(LANGUAGES)} snippet; move it")
        if opening is None:
            continue
        if language in MEANT:
            raise BadPage(f"{here}: '{language}' would not be run; write '{MEANT[language]}'")
        if language in LANGUAGES and ">" in opening["indent"]:
            raise BadPage(f"{here}: a snippet in a block quote would not be run; take it out of the quote")
        body = []
        closing = re.compile(rf"[\s>]*{opening['fence'][0]}{{{len(opening['fence'])},}}\s*")
        for _, inside in lines:
            if closing.fullmatch(inside):
                break
            body.append(inside.removeprefix(opening["indent"]))
        else:
            raise BadPage(f"{here}: this fence is never closed")
        if language not in LANGUAGES:
            continue
        if language == "python" and "run in" in comments:
            raise BadPage(f"{here}: 'run in: repo' is for bash and console; a fresh clone has no environment")
        code = _commands(body, here) if language == "console" else body
        found.append(
            Snippet(
                page=page,
                line=number,
                language=language,
                code="\n" * number + "\n".join(code) + "\n",
                reason=comments.get("not run"),
                in_clone="run in" in comments,
                exit_code=int(comments.get("exit", "0")),
            )
        )
        comments = {}
    if comments:
        raise BadPage(f"{page}: '{next(iter(comments))}' stands above no snippet; move or remove it")
    return found


def _checked(key: str, value: str, here: str) -> str:
    if key == "not run" and not value:
        raise BadPage(f"{here}: say why: <!-- not run: REASON -->")
    if key == "run in" and value != "repo":
        raise BadPage(f"{here}: 'run in: {value}' is unknown; write <!-- run in: repo -->")
    if key == "exit" and not re.fullmatch(r"\d{1,3}", value):
        raise BadPage(f"{here}: 'exit: {value}' is no exit code; write <!-- exit: 2 -->")
    return value


def _commands(body: list[str], here: str) -> list[str]:
    """What was typed in a console snippet; shown output becomes empty lines."""
    typed: list[str] = []
    in_command = unfinished = False
    for line in body:
        if line.startswith("$ "):
            in_command, line = True, line[2:]
        elif in_command and line.startswith("> "):
            line = line[2:]
        elif not unfinished:
            in_command, line = False, ""
        unfinished = in_command and line.endswith("\\")
        typed.append(line)
    if not any(typed):
        raise BadPage(f"{here}: no command in this console snippet; start one with '$ '")
    return typed


def copy_working_tree(root: Path, target: Path) -> None:
    """Copy what git tracks, and what it would track, as it stands in the working tree."""
    names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, dict.fromkeys(names)):
        source = root / name
        if source.is_symlink() or source.is_file():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def clone(root: Path, target: Path) -> None:
    """Clone the repository, then take over the working tree's changes."""
    _git(root, "clone", "--quiet", "--no-checkout", str(root), str(target))
    copy_working_tree(root, target)
    _git(target, "reset", "--quiet")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise BadPage(f"git {arguments[0]} failed in {folder}: {done.stderr.strip()}")
    return done.stdout


def _environment(venv: bool = False) -> dict[str, str]:
    """This process's variables, with its Python environment first in PATH or taken out of it."""
    dropped = {"VIRTUAL_ENV", "PYTHONHOME", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"}
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    scripts = str(Path(sys.executable).parent)
    path = variables.get("PATH", os.defpath).split(os.pathsep)
    if venv:
        variables["VIRTUAL_ENV"] = sys.prefix
        path = [scripts, *path]
    elif sys.prefix != sys.base_prefix:
        path = [entry for entry in path if entry != scripts]
    return {**variables, "PATH": os.pathsep.join(path)}


def run_snippet(snippet: Snippet, folder: Path, timeout: float) -> tuple[int | None, str]:
    """Run one snippet in `folder`; its exit code (None: it ran out of time) and everything it printed."""
    if snippet.language == "python":
        command = [sys.executable, "-c", snippet.code]
    else:
        command = ["bash", "-euo", "pipefail", "-c", snippet.code]
    with tempfile.TemporaryFile() as printed:  # not a pipe: a process left in the background would keep it open
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(venv=not snippet.in_clone),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it left running
            process.wait()
        printed.seek(0)
        return code, printed.read().decode(errors="replace")


def run_page(snippets: Sequence[Snippet], root: Path, timeout: float) -> Counter[str]:
    """Run the snippets of one page, print a line for each, and count how they ended."""
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="snippets-") as temporary:
        plain, cloned = Path(temporary, "unsee"), Path(temporary, "clone", "unsee")
        for snippet in snippets:
            end, detail, output = "passed", "", ""
            if snippet.reason is not None:
                end, detail = "not run", snippet.reason
            elif ends["FAILED"]:
                end = "not reached"
            else:
                folder = cloned if snippet.in_clone else plain
                if not folder.exists():
                    folder.mkdir(parents=True)
                    (clone if snippet.in_clone else copy_working_tree)(root, folder)
                    if not snippet.in_clone and sys.prefix != sys.base_prefix:
                        (folder / ".venv").symlink_to(sys.prefix)
                start = time.monotonic()
                code, output = run_snippet(snippet, folder, timeout)
                detail = f"{time.monotonic() - start:.1f} s"
                if code != snippet.exit_code:
                    ended = f"no end after {timeout:g} s" if code is None else f"exit code {code}"
                    end, detail = "FAILED", f"{detail}, {ended}, expected exit code {snippet.exit_code}"
            ends[end] += 1
            print(f"{snippet.page}:{snippet.line:<5} {snippet.language:<8} {end:<12} {detail}".rstrip(), flush=True)
            if end == "FAILED":
                print("".join(f"    | {line}\n" for line in output.splitlines() or ["(it printed nothing)"]), end="")
    return ends


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the bash, console and python snippets of markdown pages.")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one snippet (default: %(default)g)")
    options = parser.parse_args(arguments)
    ends: Counter[str] = Counter()
    try:
        pages = [snippets_of(page, page.read_text(encoding="utf-8")) for page in options.pages]
        for snippets in pages:
            ends += run_page(snippets, options.root.resolve(), options.timeout)
    except (BadPage, OSError, UnicodeDecodeError) as error:
        print(f"run_readme: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{ends[end]} {end}" for end in ("passed", "FAILED", "not run", "not reached") if ends[end])
    print(f"{ends.total()} snippets on {len(pages)} pages: {counts or 'nothing to run'}")
    return 1 if ends["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
