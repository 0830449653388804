"""The report: one page that holds everything, says what is missing, and never says more than the files do."""

from __future__ import annotations

import base64
import copy
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unsee.errors import BadInput
from unsee.evaluation.metrics import LEADING
from unsee.reporting import write_report
from unsee.reporting.parts import UNSCORED
from unsee.reporting.read import Role, read_run
from unsee.reporting.run import VerdictCard, claims, verdict

pytestmark = pytest.mark.usefixtures("drawings")

FORGET = ["alba-vance", "<b>x"]
NAMES = {"alba-vance": "Alba Vance", "hiro-cruz": "Hiro Cruz"}
QUESTIONS = (("identity", "name", "Who is this?"), ("fact", "city", "Where does this person live?"))
EDGES = ((0.0, 0.0), (1.0, 0.5), (0.2, 0.9))


def cell(value: float | None, spread: float = 0.03, n: int = 240) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    return {"value": value, "low": max(0.0, value - spread), "high": min(1.0, value + spread), "n": n}


def scores(forget: float, retain: float, strangers: float | None = 0.95, wrong: float = 0.2) -> dict[str, Any]:
    pictured = {
        part: {split: cell(value) for split in ("train", "validation", "test")}
        for part, value in (("forget", forget), ("retain", retain))
    }
    return {
        **pictured,
        "names": pictured,
        "facts": pictured,
        "attributes": {"forget": cell(0.96), "retain": cell(0.97), "strangers": cell(strangers)},
        "text": {"forget": cell(0.98), "retain": cell(0.99)},
        "misattribution": {"forget": cell(wrong, 0.1, 40) | {"subject": "<b>x", "named": "Hiro Cruz"}},
        "health": {"empty": cell(0.0), "repeated": cell(0.01), "off_list": cell(0.02)},
        "cost": {"seconds": 11.5, "peak_memory_bytes": 2**29},
    }


def manifest(kind: str) -> dict[str, Any]:
    history = {"contrastive": [{"step": s, "forget": 5 / s, "retain": 400 / s**2} for s in range(1, 60)]}
    settings = {"method": {"name": "nscvf", "level": "features", "layers": ["last2", "projector"]}, "rate": 0.002}
    return {
        "kind": kind,
        "sha256": {"model.safetensors": "a" * 64},
        "seed": 10,
        **({"history": history, "settings": settings} if kind == "unlearned" else {"history": {}, "settings": {}}),
    }


def make_run(directory: Path, change: Callable[[dict[str, Any]], None] = lambda results: None) -> Path:
    """A run directory with three models, four sample pictures and features; `change` edits results.json."""
    results: dict[str, Any] = {
        "vanilla": scores(0.97, 0.98),
        "gold": scores(0.08, 0.97),
        "unlearned": scores(0.09, 0.96, strangers=None),
    }
    results["unlearned"]["tensors"] = {"tensors": 40, "changed": 6, "language_tensors": 30, "language_changed": 0}
    kinds = {"vanilla": "pocket", "gold": "pocket", "unlearned": "unlearned"}
    results["provenance"] = {
        "command": "unsee evaluate --forget 'first:2' & more",
        "created": "2026-11-14T10:31:00+00:00",
        "data": {"source": "people:count=60,seed=10", "fingerprint": "f" * 64},
        "forget": FORGET,
        "names": NAMES,
        "versions": {"torch": "2.13", "python": "3.11"},
        "machine": {"cores": 2},
        "commit": "0123abc",
        "dirty": True,
        "seed": 10,
        "models": {role: manifest(kind) for role, kind in kinds.items()},
    }
    change(results)
    roles = [name for name in results if name != "provenance"]
    people = [("alba-vance", "forget"), ("<b>x", "forget"), ("hiro-cruz", "retain"), ("stranger-1", "strangers")]
    for folder in ("predictions", "pictures"):
        (directory / folder).mkdir(parents=True)
    (directory / "results.json").write_text(json.dumps(results))
    index = []
    for number, (subject, part) in enumerate(people):
        Image.new("RGB", (48, 48), (60 * number, 90, 160)).save(directory / "pictures" / f"{number:02d}.png")
        index.append({"file": f"{number:02d}.png", "label": f"{subject}/test-0", "subject": subject, "set": part})
    (directory / "pictures" / "index.json").write_text(json.dumps(index))
    for role in roles:
        rows = [
            {
                "role": role,
                "split": "test",
                "set": part,
                "subject": subject,
                "probe": probe,
                "key": key,
                "question": question,
                "answer": "Oslo" if key == "city" else NAMES.get(subject, subject),
                "prediction": "" if role == "gold" and key == "name" else "Oslo",
                "correct": key == "city",
                "image": f"{subject}/test-0",
            }
            for subject, part in people
            for probe, key, question in QUESTIONS
        ]
        (directory / "predictions" / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    features = {
        "points": [{"subject": subject, "set": part} for subject, part in people for _ in EDGES],
        "roles": {role: [[i + x, y - i] for i, _ in enumerate(people) for x, y in EDGES] for role in roles},
    }
    (directory / "features.json").write_text(json.dumps(features))
    return directory


LAYERS = ("model.vision_tower.encoder.layers.2.self_attn.k_proj.weight", "model.multi_modal_projector.linear_1.weight")


def certificate(drift: float = 0.04, bound: float | None = 0.1, cast: float = 0.04, unseen: bool = True) -> Any:
    row = {"drift": drift, "drift_after_cast": cast, "dtype": "float32", "bound": bound, "outside": 0.0, "free": 0.9}
    change = {"first_order": 0.031, "measured": 0.03, "measured_after_cast": 0.03, "pictures": 120}
    return {
        "layers": {LAYERS[0]: row, LAYERS[1]: {**row, "drift": drift / 4}},
        "tokens": {"used": change, "unseen": {**change, "measured": 0.06, "pictures": 108} if unseen else None},
        "summary": {"drift": {"mean": 1, "worst": 1}},
        "meaning": {"drift": "sqrt"},
    }


def certified(found: Any) -> Callable[[dict[str, Any]], None]:
    return lambda results: results["unlearned"].update(certificate=found)


class Page(HTMLParser):
    """What the page loads, contains and shows, as a reader's machine sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


def loads(text: str) -> list[str]:
    """Every address a browser would follow by itself: anything but data: and #places."""
    keys = {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}
    found = [value for _, attrs in Page(text).tags for key, value in attrs.items() if key in keys]
    found += [match.strip("'\" ") for match in re.findall(r"url\(([^)]*)\)|@import", text)]
    return [address for address in found if not address.startswith(("data:", "#"))]


def page_of(directory: Path) -> str:
    return write_report(directory).read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_needs_no_script(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "run"))
    assert loads(text) == []
    assert not Page(text).all("script")
    control = '<img src="http://a.b/c.png"><style>p { background: url(https://a.b/d.png) }</style><a href="other.html">'
    assert len(loads(control)) == 3


def test_pictures_and_figures_are_inside_and_described(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    page = Page(page_of(directory))
    images = page.all("img")
    assert len(images) == 4
    for number, image in enumerate(images):
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert content == (directory / "pictures" / f"{number:02d}.png").read_bytes()
        assert image["alt"]
    figures = {path.stem for path in (directory / "figures").iterdir()}
    expected = {
        "accuracy-forget",
        "accuracy-retain",
        "attributes",
        "text",
        "names-and-facts",
        "side-effects",
        "history-unlearned-contrastive",
    }
    assert not any("mathdefault" in path.read_text() for path in (directory / "figures").iterdir())
    assert figures == expected | {f"features-{role}" for role in ("vanilla", "gold", "unlearned")}
    plates = [attrs for attrs in page.all("div") if attrs.get("class") == "plate"]
    assert len(plates) == len(figures) == len(page.all("svg"))
    assert all(plate["role"] == "img" and plate["aria-label"] for plate in plates)
    assert figures <= {attrs.get("id") for attrs in page.all("figure")}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = [
        attrs[key][1:] for _, attrs in page.tags for key in ("href", "xlink:href") if attrs.get(key, "")[:1] == "#"
    ]
    assert targets
    assert set(targets) <= set(ids)
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in page.all("th"))


def test_unscored_is_a_dash_and_zero_is_a_number(tmp_path: Path) -> None:
    rows = re.findall(
        r"<tr><th scope=\"row\">(strangers|empty)</th>(.*?)</tr>", page_of(make_run(tmp_path / "run")), re.S
    )
    values = {label: re.findall(r'class="value">([^<]*)<', row) for label, row in rows}
    assert values == {"strangers": ["95.0%", "95.0%", UNSCORED], "empty": ["0.0%"] * 3}


def test_measures_that_tell_best_come_first_where_they_were_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    without = page_of(run)
    taken = {role: {name: {"forget": cell(0.123)} for name in LEADING} for role in ("vanilla", "gold", "unlearned")}
    (run / "measures.json").write_text(json.dumps({"models": taken, "provenance": {}}))
    page = page_of(run)
    assert "what tells best" in page
    assert "what tells best" not in without
    assert page.index("what tells best") < page.index("Forget set, from pictures")
    table = page[page.index('id="scores"') : page.index("Forget set, from pictures")]
    assert table.count(">12.3%<") == len(LEADING) * len(taken)
    (run / "measures.json").write_text(json.dumps({"models": {"gold": {LEADING[0]: 3}}}))
    with pytest.raises(BadInput, match=r"measures.json: not a measures\.json"):
        write_report(run)


def test_what_others_wrote_is_escaped(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "run"))
    assert "<b>" not in text
    assert "&lt;b&gt;x" in text
    assert "<b>x" in Page(text).text
    for path in (tmp_path / "run" / "figures").iterdir():
        assert "<b>" not in path.read_text(), path


def test_two_runs_are_byte_equal(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name) for name in "ab")

    def written(directory: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in [write_report(directory), *(directory / "figures").iterdir()]}

    before = written(first)
    assert before == written(first) == written(second)
    third = make_run(tmp_path / "c", lambda r: r["unlearned"]["forget"].update(test=cell(0.5)))
    assert before["report.html"] != written(third)["report.html"]


def outcome(directory: Path, change: Callable[[dict[str, Any]], None]) -> tuple[VerdictCard, VerdictCard, VerdictCard]:
    run = read_run(make_run(directory, lambda results: change(results)))
    return verdict(run, run.unlearned[0])


def with_forget(value: float, split: str = "test") -> Callable[[dict[str, Any]], None]:
    return lambda results: results["unlearned"]["forget"].update({split: cell(value)})


@pytest.mark.parametrize(
    ("change", "title", "tone"),
    [
        (with_forget(0.09), "Cannot be decided", "unsure"),  # one gold model: level with it says nothing
        (with_forget(0.00), "Cannot be decided", "unsure"),
        (with_forget(0.30), "Cannot be decided", "unsure"),  # apart from gold, and nearer to it than to vanilla
        (with_forget(0.60), "Not forgotten", "bad"),
        (with_forget(0.60, "train"), "Not forgotten", "bad"),
        (with_forget(0.97), "Not forgotten", "bad"),
        (lambda r: r["unlearned"]["forget"].update(test=cell(None)), "Cannot be decided", "unsure"),
        (lambda r: r["unlearned"]["forget"]["test"].update(low=None), "Cannot be decided", "unsure"),
        (lambda r: r["unlearned"]["forget"].update(test=cell(0.5, 0.49)), "Cannot be decided", "unsure"),
        (lambda r: r.pop("gold"), "Cannot be decided", "unsure"),
    ],
)
def test_forgetting_is_read_against_gold(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], title: str, tone: str
) -> None:
    """Of results alone; with measures see test_one_verdict.py."""

    def with_narrow_gold(results: dict[str, Any]) -> None:
        results["gold"]["forget"] = {split: cell(0.08) for split in ("train", "validation", "test")}
        for role in ("vanilla", "unlearned"):
            results[role] = copy.deepcopy(results[role])
        change(results)

    finding = outcome(tmp_path / "run", with_narrow_gold)[0]
    assert (finding.title, finding.tone) == (title, tone)


def test_losses_and_side_effects_are_named(tmp_path: Path) -> None:
    def harm(results: dict[str, Any]) -> None:
        results["unlearned"]["text"]["retain"] = cell(0.5)

    def all_asked(results: dict[str, Any]) -> None:
        results["unlearned"]["attributes"]["strangers"] = cell(0.95)

    _, kept, clean = outcome(tmp_path / "good", all_asked)
    assert (kept.title, clean.title) == ("Kept", "Cannot be decided")  # health is measured set by set
    _, lost, _ = outcome(tmp_path / "bad", harm)
    assert (lost.title, lost.tone) == ("Clear losses", "bad")
    assert "accuracy on retain_text: -49.0 points" in lost.sentence
    _, _, stands_out = outcome(tmp_path / "named", lambda r: r.update(unlearned=scores(0.09, 0.96, wrong=0.9)))
    assert (stands_out.title, stands_out.tone) == ("Answers degraded", "bad")
    assert "<b>x is called “Hiro Cruz” on 90.0%" in stands_out.sentence
    assert "one wrong name for one target: 90.0 %, of gold 20.0 %" in stands_out.sentence


def test_without_gold_the_page_says_so(tmp_path: Path) -> None:
    assert "No gold model." not in page_of(make_run(tmp_path / "with"))
    text = page_of(make_run(tmp_path / "without", lambda results: results.pop("gold")))
    assert "No gold model." in text
    assert ">gold</th>" not in text


def test_claims_follow_the_files(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    claimed, refused = (" ".join(part) for part in claims(read_run(directory)))
    assert "all 30 tensors of the language model are bit for bit" in claimed
    assert "relearning" in refused
    (directory / "relearn.json").write_text("{}")
    assert "relearning" not in " ".join(claims(read_run(directory))[1])
    outputs = make_run(
        tmp_path / "outputs",
        lambda r: r["unlearned"]["tensors"].update(language_changed=1),
    )
    assert "bit for bit" not in " ".join(claims(read_run(outputs))[0])


def test_optional_files_may_be_absent(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", lambda r: r.update(provenance={"forget": FORGET}))
    shutil.rmtree(directory / "pictures")
    shutil.rmtree(directory / "predictions")
    (directory / "features.json").unlink()
    text = page_of(directory)
    assert "No sample pictures" in text
    assert "No visual features" in text
    assert "No training history" in text


def test_the_order_is_vanilla_gold_others(tmp_path: Path) -> None:
    def shuffle(results: dict[str, Any]) -> None:
        results["npo"], results["gold"] = results.pop("unlearned"), results.pop("gold")

    roles: tuple[Role, ...] = read_run(make_run(tmp_path / "run", shuffle)).roles
    assert [role.name for role in roles] == ["vanilla", "gold", "npo"]


def _broken(path: str, content: str | None) -> Callable[[Path], None]:
    def breaks(directory: Path) -> None:
        if content is None:
            (directory / path).unlink()
        else:
            (directory / path).write_text(content)

    return breaks


def _edited(key: str, value: object) -> Callable[[Path], None]:
    def breaks(directory: Path) -> None:
        results = json.loads((directory / "results.json").read_text())
        *parents, last = key.split(".")
        inner = results
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        (directory / "results.json").write_text(json.dumps(results))

    return breaks


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (_edited("unlearned.certificate", 3), "unlearned.certificate: expected an object"),
        (_edited("unlearned.certificate", {"layers": [1]}), "unlearned.certificate.layers: expected an object"),
        (_edited("unlearned.certificate", {"layers": {"a": 1}}), "certificate.layers: a: expected an object"),
        (_edited("unlearned.certificate", {"layers": {"a": {"free": 1.0}}}), "a: drift: expected a number from 0"),
        (_edited("unlearned.certificate", {"layers": {"a": {"drift": float("nan")}}}), "drift: expected a number"),
        (_edited("unlearned.certificate", {"layers": {"a": {"drift": 0, "bound": -1}}}), "bound: expected a number"),
        (_edited("unlearned.certificate", {"tokens": {"used": {"measured": 1}}}), "used.pictures: expected a number"),
        (_broken("results.json", None), "results.json: not found; run `unsee evaluate"),
        (_broken("results.json", "{"), "results.json: cannot be read as JSON"),
        (_broken("results.json", "[]"), "expected a JSON object"),
        (_edited("provenance", None), "expected the key 'provenance'"),
        (_edited("unlearned.forget.test.value", 98.2), "unlearned.forget.test.value: expected a fraction"),
        (_edited("unlearned.forget.test.low", float("nan")), "unlearned.forget.test.low: expected a fraction"),
        (_edited("unlearned.text", 1), "unlearned.text: expected an object"),
        (_edited("unlearned.cost.seconds", "long"), "unlearned.cost.seconds: expected a number"),
        (_edited("provenance.models.unlearned.history", {"phase": 3}), "history.phase: expected a list"),
        (_broken("predictions/gold.jsonl", None), "gold.jsonl: not found"),
        (_broken("predictions/gold.jsonl", '{"image": "x"}\n'), "gold.jsonl: row 1"),
        (_broken("predictions/gold.jsonl", "\nno\n"), "gold.jsonl: row 2: not JSON"),
        (_broken("pictures/01.png", None), "01.png: named in index.json"),
        (_broken("pictures/index.json", '[{"file": "../a.png", "label": "", "subject": ""}]'), "plain name"),
        (_broken("pictures/index.json", '[{"file": 1}]'), "index.json: entry 0"),
        (_broken("features.json", '{"points": [], "roles": {"gold": [[0, 1]]}}'), "1 places for 0 points"),
        (_broken("features.json", '{"points": []}'), "features.json: expected"),
    ],
)
def test_broken_input_is_one_clear_line_and_nothing_is_written(
    tmp_path: Path, breaks: Callable[[Path], None], says: str
) -> None:
    directory = make_run(tmp_path / "run")
    breaks(directory)
    before = sorted(directory.rglob("*"))
    with pytest.raises(BadInput) as caught:
        write_report(directory)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(directory.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_bad_input_and_leaves_no_scraps(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    (directory / "report.html").mkdir()
    with pytest.raises(BadInput, match=r"report\.html"):
        write_report(directory)
    assert not list(directory.rglob(".*.partial"))


def chromium(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs chromium on the path")
    with tempfile.TemporaryDirectory() as profile:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --virtual-time-budget=3000 --enable-logging=stderr"
        ).split()
        return subprocess.run(
            [browser, *flags, f"--user-data-dir={profile}", *options, (directory / "report.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )


MEASURE = """<script>addEventListener("load", () => {
  const missing = [...document.images].filter(i => !i.naturalWidth).length
    + [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().height < 100).length;
  const root = document.documentElement;
  document.title = `missing=${missing} images=${document.images.length} wide=${root.scrollWidth - root.clientWidth}`;
})</script></body>"""


@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_shows_every_figure_without_complaint(tmp_path: Path, width: int) -> None:
    directory = make_run(tmp_path / "run", certified(certificate()))
    text = page_of(directory)
    shown = chromium(directory, "--dump-dom", f"--window-size={width},1000")
    assert shown.returncode == 0
    assert "CONSOLE" not in shown.stderr
    # The page forbids scripts, so ours only runs in a copy without that rule; it measures what is laid out.
    copied = text.replace("default-src 'none'", "script-src 'unsafe-inline'").replace("</body>", MEASURE)
    framed = f'<iframe src="page.html" width="{width}" height="900" onload="document.title=this.contentDocument.title">'
    (directory / "page.html").write_text(copied, encoding="utf-8")
    (directory / "report.html").write_text(framed)
    measured = chromium(directory, "--dump-dom", "--allow-file-access-from-files", "--window-size=1600,1000")
    assert "CONSOLE" not in measured.stderr
    assert "<title>missing=0 images=4 wide=0</title>" in measured.stdout
    control = copied.replace("data:image/png;base64,", "data:image/png;base64,AAAA", 1).replace(
        "<main>", "<main><div style='width:3000px'>x</div>"
    )
    (directory / "page.html").write_text(control, encoding="utf-8")
    broken = chromium(directory, "--dump-dom", "--allow-file-access-from-files", "--window-size=1600,1000")
    assert "missing=1 images=4" in broken.stdout
    assert "wide=0" not in broken.stdout
