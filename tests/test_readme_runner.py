"""The documentation's snippets: what works passes, what fails is reported, nothing is left out in silence."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import run_readme

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository: one committed file, one change, one new file, one that git ignores."""
    root = tmp_path / "root"
    root.mkdir()
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    git += ["-c", "core.hooksPath=/dev/null"]
    (root / "tracked.txt").write_text("committed\n")
    (root / "gone.txt").write_text("committed\n")
    (root / ".gitignore").write_text("ignored.txt\n")
    subprocess.run([*git, "init", "--quiet"], cwd=root, check=True)
    subprocess.run([*git, "add", "."], cwd=root, check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], cwd=root, check=True)
    (root / "tracked.txt").write_text("changed\n")
    (root / "gone.txt").unlink()
    (root / "new.txt").write_text("new\n")
    (root / "ignored.txt").write_text("ignored\n")
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run pages given as text; exit code, standard output, standard error."""

    def run(*texts: str, timeout: float = 60) -> tuple[int, str, str]:
        pages = [tmp_path / f"page{number}.md" for number, _ in enumerate(texts)]
        for page, text in zip(pages, texts, strict=True):
            page.write_text(dedent(text), encoding="utf-8")
        code = run_readme.main([*map(str, pages), "--root", str(root), "--timeout", str(timeout)])
        return code, *capsys.readouterr()

    return run


def test_a_working_page_passes_and_files_stay_for_the_next_snippet(run: Run) -> None:
    code, out, _ = run("""\
        ```bash
        echo 7 > seven
        ```

        ```python
        from pathlib import Path
        assert Path("seven").read_text() == "7\\n"
        Path("eight").write_text("8")
        ```

        1. in a list:
           ```console
           $ cat eight \\
               seven
           87
           $ cat <<end
           > eight
           > end
           not a command
           ```
        """)
    assert code == 0, out
    assert "page0.md:1 " in out
    assert "3 snippets on 1 pages: 3 passed" in out


@pytest.mark.parametrize(
    ("language", "snippet", "says"),
    [
        ("bash", "echo before; exit 3", "exit code 3"),
        ("bash", "false | true", "exit code 1"),  # pipefail
        ("bash", "false\ntrue", "exit code 1"),  # -e
        ("bash", "echo $no_such_variable", "no_such_variable: unbound variable"),  # -u
        ("console", "$ false\nfine", "exit code 1"),
        ("console", "$ sh -c 'exit 4' > /dev/null", "exit code 4"),
        ("python", "raise ValueError('no')", "ValueError: no"),
        ("python", "import no_such_package", "no_such_package"),
    ],
)
def test_a_failing_snippet_fails_and_shows_its_output(run: Run, language: str, snippet: str, says: str) -> None:
    code, out, _ = run(f"```{language}\n{snippet}\n```\n")
    assert code == 1
    assert "FAILED" in out
    assert says in out
    # control: the same page with a snippet that works
    assert (
        run(f"```{language}\n{'$ ' * (language == 'console')}{'pass' if language == 'python' else 'true'}\n```\n")[0]
        == 0
    )


def test_a_traceback_has_the_line_numbers_of_the_page(run: Run) -> None:
    assert ", line 5" in run("text\n\n```python\nx = 1\nx / 0\n```\n")[1]
    assert "line 5: no-such-program" in run("text\n\n```bash\n:\nno-such-program\n```\n")[1]


def test_after_a_failure_the_page_ends_but_the_next_page_runs(run: Run) -> None:
    code, out, _ = run("```bash\nfalse\n```\n\n```bash\ntouch more\n```\n", "```bash\ntrue\n```\n")
    assert code == 1
    assert "page0.md:5     bash     not reached" in out
    assert "page1.md:1     bash     passed" in out
    assert "3 snippets on 2 pages: 1 passed, 1 FAILED, 1 not reached" in out


def test_a_skipped_snippet_is_reported_with_its_reason(run: Run) -> None:
    skipped = "<!-- not run: downloads 14 GB -->\n```bash\nfalse\n```\n"
    code, out, _ = run(skipped)
    assert code == 0
    assert "not run      downloads 14 GB" in out
    assert "1 snippets on 1 pages: 1 not run" in out
    # control: only that snippet is skipped
    assert run(skipped + "\n```bash\nfalse\n```\n")[0] == 1


def test_an_expected_exit_code_is_the_only_one_that_passes(run: Run) -> None:
    page = "<!-- exit: 2 -->\n```bash\nexit {}\n```\n"
    assert run(page.format(2))[0] == 0
    for other in (0, 1):
        code, out, _ = run(page.format(other))
        assert code == 1
        assert f"exit code {other}, expected exit code 2" in out


def test_snippets_see_the_working_tree_but_cannot_change_it(run: Run, root: Path) -> None:
    code, out, _ = run("""\
        ```bash
        grep changed tracked.txt; grep new new.txt
        test ! -e ignored.txt; test ! -e gone.txt; test ! -e .git
        echo spoilt > tracked.txt; touch made.txt
        ```
        """)
    assert code == 0, out
    assert (root / "tracked.txt").read_text() == "changed\n"
    assert not (root / "made.txt").exists()


def test_run_in_repo_is_a_clone_with_the_changes_and_without_the_environment(run: Run) -> None:
    code, out, _ = run("""\
        <!-- run in: repo -->
        ```bash
        git log --oneline | grep first
        test "$(git status --short)" = $' D gone.txt\\n M tracked.txt\\n?? new.txt'
        grep changed tracked.txt; test ! -e ignored.txt; test ! -e .venv; test -z "${VIRTUAL_ENV-}"
        touch made.txt
        ```

        ```bash
        test ! -e made.txt
        ```

        <!-- run in: repo -->
        ```bash
        test -e made.txt
        ```
        """)
    assert code == 0, out


def test_the_running_environment_comes_first(run: Run) -> None:
    scripts = Path(sys.executable).parent
    page = "```bash\ntest $(command -v python3) = {}/python3\n```\n"
    assert run(page.format(scripts))[0] == 0
    assert run(page.format("/nowhere"))[0] == 1
    if sys.prefix != sys.base_prefix:
        assert run("```bash\n.venv/bin/python -c 'import pytest'\n```\n")[0] == 0
    assert run("```python\nimport sys\nassert sys.prefix == " + repr(sys.prefix) + "\n```\n")[0] == 0


def test_a_snippet_that_does_not_end_is_stopped(run: Run) -> None:
    code, out, _ = run("```bash\nsleep 300\n```\n", timeout=0.5)
    assert code == 1
    assert "no end after 0.5 s" in out


def test_a_process_left_in_the_background_is_neither_waited_for_nor_kept(run: Run, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    snippet = f"```bash\n(sleep 0.5; touch {mark}) &\n{{}}\n```\n"
    assert run(snippet.format("true"))[0] == 0
    time.sleep(1)
    assert not mark.exists()
    assert run(snippet.format("wait"))[0] == 0  # control: waited for, it leaves its mark
    assert mark.exists()


def test_other_fences_are_left_alone(run: Run) -> None:
    code, out, _ = run("""\
        <!-- an ordinary comment -->
        ```
        false
        ```

        ````markdown
        <!-- not run: shown, not meant -->
        ```bash
        false
        ```
        ````

        ~~~text
        ```bash
        ~~~
        """)
    assert code == 0, out
    assert "0 snippets on 1 pages: nothing to run" in out


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<!-- not run: later -->\n\n```bash\n```\n", "page0.md:2: 'not run' stands above no"),
        ("<!-- not run: later -->\n```text\n```\n", "page0.md:2: 'not run' stands above no"),
        ("<!-- exit: 2 -->\n", "stands above no snippet"),
        ("<!-- not run: -->\n```bash\n```\n", "say why"),
        ("<!-- not run -->\n```bash\n```\n", "say why"),
        ("<!-- exit: two -->\n```bash\n```\n", "no exit code"),
        ("<!-- run in: moon -->\n```bash\n```\n", "'run in: moon' is unknown"),
        ("<!-- run in: repo -->\n```python\n```\n", "for bash and console"),
        ("```bash\ntrue\n", "never closed"),
        ("```sh\ntrue\n```\n", "write 'bash'"),
        ("> ```bash\n> true\n> ```\n", "block quote"),
        ("```console\ntrue\n```\n", "no command"),
    ],
)
def test_a_page_that_would_lose_a_snippet_in_silence_is_refused(run: Run, page: str, says: str) -> None:
    code, out, err = run(page)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
    assert not out


def test_a_missing_page_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_readme.main([str(tmp_path / "absent.md")]) == 2
    assert "absent.md" in capsys.readouterr().err
