"""Measures of a sequence of requests against numbers worked out by hand, and the page that shows them."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sequences
from conftest import whole_figures
from matplotlib.figure import Figure
from sequences import Line
from test_report import Page, loads

from unsee.attacks.relearn_run import gain
from unsee.errors import BadInput
from unsee.evaluation.sequence import Course, change, summarise
from unsee.reporting.parts import drawing
from unsee.reporting.sequence import sections, warnings, write_sequence_report
from unsee.reporting.sequence_figures import effort_painter, people_painter
from unsee.reporting.sequence_lines import read_sequence

Change = Callable[[list[Line]], None]


def courses(folder: Path, lines: list[Line]) -> list[Course]:
    return read_sequence(sequences.write(folder, lines))[0]


def only_arm(folder: Path, lines: list[Line]) -> dict[str, Any]:
    (arm,) = summarise(courses(folder, lines))["arms"]
    found: dict[str, Any] = arm
    return found


def test_measures_of_two_requests_by_hand(tmp_path: Path) -> None:
    """Of ten questions each. Now: a 3, b 1 (gold 1, 0), r 10, s 8 (vanilla 10, 10).

    Still right (3 + 1) / 20 = 0.2; over gold a +0.2, b +0.1: mean 0.15, worst a; 95th percentile of two: the larger.
    Lost of those who stay: r 0, s 0.2: mean 0.1. Rebound: a alone, 3 - 1 = 2 of 10. Retain Stability Rate: shares
    1, 0.95, 0.9: mean of 0.05 and 0.05.
    """
    arm = only_arm(tmp_path / "run", sequences.small())
    over, lost = arm["over_gold"], arm["loss"]["retain"]
    assert (arm["recognised"]["value"], arm["recognised"]["n"]) == (0.2, 20)
    assert arm["recognised_by_gold"]["value"] == pytest.approx(0.05)
    assert (over["value"], over["percentile_95"]["value"]) == pytest.approx((0.15, 0.2))
    assert over["worst"] == {"value": 0.2, "subject": "a", "order": 0}
    assert (over["within_3"]["value"], over["within_8"]["value"]) == (0.0, 0.0)
    assert lost["value"] == pytest.approx(0.1)
    assert lost["worst"]["subject"] == "s"
    assert arm["rebound"]["value"] == pytest.approx(0.2)
    assert (arm["rebound"]["n"], arm["rebound"]["worst"]["subject"]) == (10, "a")
    assert arm["rebound_per_request"]["value"] == pytest.approx(0.2)
    assert arm["retain_stability"]["value"] == pytest.approx(0.05)
    assert arm["seconds"]["mean"]["value"] == 5.0
    assert arm["seconds"]["ratio"]["value"] == 1.5  # 6 s after 4 s
    assert (arm["free"]["value"], arm["free"]["layer"]) == (0.25, "y")
    changed = sequences.small()
    changed[3]["targets"]["a"] = [1, 10]
    assert only_arm(tmp_path / "control", changed)["rebound"]["value"] == 0.0


def test_rebound_adds_up_while_the_other_definition_counts_rises_only(tmp_path: Path) -> None:
    """a right after its own request: 0 of 10; then 4, then 1. b: 0, then 0. Of 10 each.

    Ours: a +0.1, b 0: mean 0.05. Rises: request 2 from 0 to 0.4 (a alone); request 3 of a and b together from 4/20 to
    1/20, a fall: 0. Mean (0.4 + 0) / 2 = 0.2.
    """

    def at(request: int, subject: str | None, a: int, b: int, c: int, arm: str = "nscvf") -> Line:
        return sequences.line(arm, request, subject, targets={"a": [a, 10], "b": [b, 10], "c": [c, 10]})

    lines = [
        at(0, None, 10, 10, 10, "vanilla"),
        at(1, "a", 0, 10, 10),
        at(2, "b", 4, 0, 10),
        at(3, "c", 1, 0, 7),
    ]
    arm = only_arm(tmp_path, lines)
    assert arm["rebound"]["value"] == pytest.approx(0.05)
    assert arm["rebound_per_request"]["value"] == pytest.approx(0.2)
    assert arm["rebound"]["n"] == 20, "c of the last request had no time to come back"


def test_percentile_and_shares_count_targets_exactly(tmp_path: Path) -> None:
    """Twenty targets of 100 questions, gold 6 of each; nineteen at 8 points over, the last at 30.

    95 % of twenty are nineteen: the percentile is 0.08, which 0.14 - 0.06 in floating point is not.
    """

    def run(folder: Path, right: list[int]) -> Any:
        names = [f"t{number:02d}" for number in range(20)]
        everybody = {"targets": {name: [6, 100] for name in names}}
        lines = [sequences.line("vanilla", 0, **everybody), sequences.line("gold", 1, **everybody)]
        own = {name: [number, 100] for name, number in zip(names, right, strict=True)}
        lines.append(sequences.line("nscvf", 1, names, targets=own))  # type: ignore[arg-type]
        return only_arm(folder, lines)

    exact, more = run(tmp_path / "exact", [14] * 19 + [36]), run(tmp_path / "more", [14] * 18 + [15, 36])
    assert 0.14 - 0.06 > 0.08, "what makes exactness matter"
    assert exact["over_gold"]["percentile_95"]["value"] == 0.08
    assert exact["over_gold"]["within_8"]["value"] == 0.95
    assert exact["aims"]["over_gold_95"] is True
    assert exact["over_gold"]["worst"]["subject"] == "t19"
    assert more["over_gold"]["within_8"]["value"] == 0.90
    assert more["aims"]["over_gold_95"] is False


def test_times_of_the_first_and_last_five(tmp_path: Path) -> None:
    """Twelve requests of 1, 2, ..., 12 seconds: (8 + ... + 12) / 5 = 10 over (1 + ... + 5) / 5 = 3."""
    names = [f"t{number:02d}" for number in range(12)]
    everybody = {"targets": {name: [1, 10] for name in names}}
    lines = [sequences.line("vanilla", 0, **everybody)]
    lines += [sequences.line("cvf", n, names[n - 1], seconds=float(n), **everybody) for n in range(1, 13)]
    times = only_arm(tmp_path / "run", lines)["seconds"]
    assert (times["first"]["value"], times["last"]["value"]) == (3.0, 10.0)
    assert times["ratio"]["value"] == pytest.approx(10 / 3)
    assert times["ratio"]["low"] < 10 / 3 < times["ratio"]["high"]
    for one in lines:
        one["seconds"] = 7.0
    flat = only_arm(tmp_path / "flat", lines)
    assert flat["seconds"]["ratio"]["value"] == 1.0
    assert flat["aims"]["slowdown"] is True


def test_what_was_not_measured_is_null_and_not_zero(tmp_path: Path) -> None:
    lines = sequences.small()
    for one in lines:
        one |= {"retain": None, "attributes": {}, "seconds": None, "free": None}
    lines = [one for one in lines if one["arm"] != "gold"]
    arm = only_arm(tmp_path / "run", lines)
    empty = (arm["loss"]["retain"], arm["loss"]["attributes"], arm["loss"]["text"], arm["over_gold"], arm["free"])
    for cell in (*empty, arm["seconds"]["ratio"], arm["retain_stability"], arm["recognised_by_gold"]):
        assert (cell["value"], cell["low"], cell["high"], cell["n"]) == (None, None, None, 0)
    assert arm["aims"]["retain"] is None
    assert arm["over_gold"]["worst"] is None
    measured = only_arm(tmp_path / "control", sequences.small())
    assert measured["loss"]["retain"]["n"] == 20
    assert measured["aims"]["retain"] is False
    page = write_sequence_report(tmp_path / "run").read_text()
    assert "No gold model." in page
    assert "No gold model." not in write_sequence_report(tmp_path / "control").read_text()


def test_the_interval_is_students_where_all_are_asked_equally_much() -> None:
    before = {"a": (5, 10), "b": (2, 10), "c": (9, 10)}
    after = {"a": (7, 10), "b": (5, 10), "c": (9, 10)}
    ours, theirs = change([(before, after)]), gain(before, after)
    assert ours == pytest.approx(dict(theirs))
    twice = change([(before, after), (before, after)])
    assert [twice[end] for end in ("value", "low", "high")] == pytest.approx([ours[end] for end in ours if end != "n"])
    assert twice["n"] == 60, "the same people asked again are no other people"
    shuffled = change([(before, dict(zip("abc", ((9, 10), (7, 10), (5, 10)), strict=True)))])
    assert shuffled["value"] == pytest.approx(ours["value"])
    assert shuffled["high"] > ours["high"], "control: each is compared with itself"
    alike = change([(before, {subject: (right + 1, n) for subject, (right, n) in before.items()})])
    assert (alike["value"], alike["low"], alike["high"]) == (pytest.approx(0.1), None, None)


def test_orders_are_averaged_and_stand_alone_too(tmp_path: Path) -> None:
    lines = sequences.small()
    other = [
        one | {"order": 1, "subject": subject, "targets": {"a": [a, 10], "b": [b, 10]}}
        for one, subject, a, b in ((lines[2], "b", 9, 0), (lines[3], "a", 1, 0))
    ]
    results = summarise(courses(tmp_path, [*lines, *other]))
    (arm,) = results["arms"]
    assert arm["over_gold"]["value"] == pytest.approx((0.15 + 0.0) / 2)
    assert [one["over_gold"]["value"] for one in results["orders"]] == pytest.approx([0.15, 0.0])
    assert [one["orders"] for one in results["orders"]] == [[0], [1]]
    assert arm["rebound"]["value"] == pytest.approx((0.2 + 0.0) / 2)
    assert arm["over_gold"]["worst"]["order"] == 0
    assert arm["over_gold"]["n"] == 40


# The page -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty requests by three arms, one of them in three orders."""
    folder = sequences.write(tmp_path_factory.mktemp("long") / "run", sequences.long(stay=8, asked=40))
    with whole_figures():
        write_sequence_report(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    left = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".jsonl",)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in left}


def test_the_page_of_forty_requests_holds_everything(written: Path) -> None:
    text = (written / "sequence.html").read_text()
    page = Page(text)
    assert loads(text) == []
    assert not page.all("script")
    assert "40 requests to be forgotten" in text
    assert "unsee &lt;b&gt; &amp; more" in text
    assert {path.name for path in written.rglob("*.svg")} == {"sequence-people.svg", "sequence-effort.svg"}
    assert len(page.all("svg")) == 2
    assert all(plate["aria-label"] for plate in page.all("div") if plate.get("class") == "plate")
    folded = len(page.all("details"))
    assert folded == 1 + 5 + 1, "every order, five courses, settings"
    assert "little room left in blocks.1" in page.text
    wide = [row for row in re.findall(r"<tr>(.*?)</tr>", text, re.S) if row.count("<t") < 2]
    assert not wide
    for table in re.findall(r"<table.*?</table>", text, re.S):
        cells = {len(re.findall(r"<t[hd]\b", row)) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)}
        assert len(cells) == 1, "every row is as long as its head"


def test_other_files_say_the_same(written: Path) -> None:
    summary = json.loads((written / "sequence-summary.json").read_text())
    arms = {arm["arm"]: arm for arm in summary["arms"]}
    assert list(arms) == ["cvf", "graddiff", "nscvf"]
    assert arms["nscvf"]["aims"]["retain"] is True
    assert arms["cvf"]["aims"]["retain"] is False
    rows = list(csv.DictReader((written / "sequence.csv").read_text().splitlines()))
    assert len(rows) == 5 * 40
    last = next(row for row in rows if (row["arm"], row["request"]) == ("cvf", "40"))
    assert float(last["over_gold"]) == pytest.approx(arms["cvf"]["over_gold"]["value"], abs=1e-5)
    assert last["free"] == "", "not measured is empty"
    latex = (written / "sequence.tex").read_text()
    body = latex.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert len(body) == 3
    assert {row.count("&") for row in body} == {10}
    assert latex.split("\\toprule")[1].split("\\midrule")[0].count("&") == 10
    assert not re.search(r"(?<!\\)%", latex), "an unescaped percent sign hides the rest of its line"
    assert "nan" not in latex.lower()


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    lines = sequences.long(6, orders={"nscvf": 2}, stay=3, asked=20)
    mixed = [{key: one[key] for key in sorted(one, reverse=True)} for one in lines]
    for one in mixed:
        one["targets"] = dict(sorted(one["targets"].items(), reverse=True))
    random.Random(3).shuffle(mixed)
    assert [one["request"] for one in mixed] != [one["request"] for one in lines]
    straight, again = (sequences.write(tmp_path / name, made) for name, made in (("a", lines), ("b", mixed)))
    for folder in (straight, again):
        write_sequence_report(folder)
    assert files(again) == files(straight)
    one = next(one for one in mixed if one["arm"] == "nscvf" and one["request"] == 4)
    one["targets"] |= {one["subject"]: [20, 20]}
    other = sequences.write(tmp_path / "other", mixed)
    write_sequence_report(other)
    for name in ("sequence.html", "sequence.csv", "sequence-summary.json"):
        assert files(other)[name] != files(straight)[name], "control: one answer more"


def drawn(paint: Callable[[Figure], None]) -> Figure:
    kept: list[Figure] = []

    def keeping(figure: Figure) -> None:
        paint(figure)
        kept.append(figure)

    drawing("any", "any", "", "", (5, 5), keeping)
    return kept[0]


@pytest.mark.parametrize("loss", [-0.05, 0.0002, 0.4])
def test_axes_end_within_what_shares_can_be(tmp_path: Path, loss: float) -> None:
    """Also where those who stay got better, or lost more than there is to lose."""
    ways = {
        arm: (own, rise, loss, used, time, slow) for arm, (own, rise, _, used, time, slow) in sequences.WAYS.items()
    }
    results = summarise(courses(tmp_path, sequences.long(12, stay=6, ways=ways)))
    above, below = drawn(people_painter(results)).axes
    room, time = drawn(effort_painter(results)).axes
    for axes in (above, below, room):
        low, high = axes.get_ylim()
        assert low == 0
        assert 10 <= high <= 100
        for line in axes.lines:
            assert all(low <= y <= high for y in line.get_ydata()), line.get_label()
    assert time.get_ylim()[0] == 0
    assert time.get_ylim()[1] < 200
    lines = {str(line.get_label()): list(line.get_ydata()) for line in above.lines}
    nscvf = [stage for stage in results["stages"] if (stage["arm"], stage["order"]) == ("nscvf", 0)]
    assert lines["nscvf"] == pytest.approx([100 * stage["recognised"]["value"] for stage in nscvf])
    assert lines["never saw them (gold)"] != pytest.approx(lines["nscvf"])


def test_a_figure_shows_only_what_was_measured(tmp_path: Path) -> None:
    lines = sequences.long(6, stay=3)
    for one in lines:
        one["free"] = None
    (axes,) = drawn(effort_painter(summarise(courses(tmp_path / "timed", lines)))).axes
    assert axes.get_title(loc="left") == "Time per request"
    for one in lines:
        one["seconds"] = None
    folder = sequences.write(tmp_path / "neither", lines)
    write_sequence_report(folder)
    assert [path.name for path in (folder / "figures").iterdir()] == ["sequence-people.svg"]


def test_a_terminal_has_the_rows_of_the_page(written: Path) -> None:
    results = summarise(read_sequence(written)[0])
    page = Page((written / "sequence.html").read_text()).text
    shown = [section for section in sections(results) if not section.folded]
    assert len(shown) == 4
    for section in shown:
        head, rows = section.short()
        assert {len(row) for row in rows} == {len(head)}
        assert [row[0] for row in rows] == ["cvf", "graddiff", "nscvf (3 orders)"]
        assert all(cell in page for row in rows for cell in row)


def test_warnings_are_said_once_with_their_requests() -> None:
    def stage(request: int, *said: str) -> dict[str, Any]:
        return {"arm": "nscvf", "order": 0, "request": request, "warnings": list(said)}

    stages = [stage(1), stage(2, "tight"), stage(3, "tight", "slow"), stage(4), stage(5, "tight")]
    assert warnings(stages) == ["nscvf, order 0, requests 2–3, 5: tight", "nscvf, order 0, request 3: slow"]
    assert warnings(stages[:1]) == []


# Bad input ------------------------------------------------------------------------------------------------------------


def setting(number: int, **values: Any) -> Change:
    return lambda lines: lines[number].update(values)


def extended(number: int, group: str, **values: Any) -> Change:
    return lambda lines: lines[number][group].update(values)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (lambda lines: lines[2].pop("retain"), "row 3: the key 'retain' is missing"),
        (lambda lines: lines.pop(2), "nscvf, order 0: request 1 of 2 is missing"),
        (lambda lines: lines.pop(3), "nscvf, order 0: request 2 of 2 is missing"),
        (lambda lines: lines.pop(0), "order 0: request 0 of arm 'vanilla' is missing"),
        (lambda lines: lines.__delitem__(slice(2, None)), "no request of any method"),
        (lambda lines: lines.append(lines[2]), "row 5: nscvf, order 0, request 1 stands in"),
        (lambda lines: lines.append(lines[1]), "row 5: a second gold model"),
        (lambda lines: lines.append(lines[3] | {"request": 3}), "row 5: request 3, but gold was made for 2"),
        (lambda lines: lines.append(lines[2] | {"arm": "cvf", "subject": "b"}), "row 5: subject differs from"),
        (setting(2, subject="nobody"), "row 3: unknown target 'nobody'"),
        (setting(3, subject="a"), "row 4: 'a' was requested in"),
        (setting(3, subject=None), "row 4: subject: expected whom request 2 names"),
        (setting(3, subject=3), "row 4: subject: expected a name"),
        (extended(3, "targets", c=[1, 10]), "row 4: targets: 'c' does not stand in"),
        (extended(3, "retain", r=[11, 10]), "row 4: retain: 'r': expected [right, asked]"),
        (extended(3, "retain", r=[1]), "row 4: retain: 'r': expected [right, asked]"),
        (extended(3, "retain", r=[True, 10]), "row 4: retain: 'r': expected [right, asked]"),
        (extended(3, "retain", r=[1, 10**15]), "row 4: retain: 'r': expected [right, asked]"),
        (setting(3, retain={"r": [1, 10]}), "row 4: retain: 's' of"),
        (setting(3, targets=[1]), "row 4: targets: expected an object"),
        (setting(3, targets=None), "row 4: targets: expected right and asked of every target"),
        (setting(3, retain={"a": [1, 10]}), "row 4: retain: 'a' does not stand in"),
        (setting(3, free={"x": 1.5}), "row 4: free: 'x': expected a share from 0 to 1"),
        (setting(3, free={"x": float("nan")}), "row 4: free: 'x': expected a share from 0 to 1"),
        (setting(3, drift={"x": -1}), "row 4: drift: 'x': expected a number from 0"),
        (setting(3, seconds=-1), "row 4: seconds: expected a number from 0"),
        (setting(3, seconds=10**400), "row 4: seconds: expected a number from 0"),
        (setting(3, warnings="tight"), "row 4: warnings: expected a list of texts"),
        (setting(3, warnings=["a\nb"]), "row 4: warnings: expected a list of texts of one line"),
        (setting(3, request=1.5), "row 4: request of arm 'nscvf': expected a whole number from 1"),
        (setting(3, request=0), "row 4: request of arm 'nscvf': expected a whole number from 1"),
        (setting(0, request=1), "row 1: request of arm 'vanilla': expected 0"),
        (setting(3, order=None), "row 4: order: expected a whole number from 0, found null"),
        (setting(3, order="first"), "row 4: order: expected a whole number from 0"),
        (setting(3, arm=""), "row 4: arm: expected a name"),
        (setting(3, arm="\ud800"), 'row 4: "\\ud800" is half of a character'),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, changes: Change, says: str) -> None:
    lines = sequences.small()
    changes(lines)
    folder = sequences.write(tmp_path, lines)
    with pytest.raises(BadInput) as refused:
        write_sequence_report(folder)
    assert says in str(refused.value)
    assert "sequence.jsonl" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (folder / "sequence.html").exists()


@pytest.mark.parametrize(
    ("group", "subject", "says"),
    [
        ("retain", "a", "row 1: 'a' stands among targets and retain"),
        ("targets", "c", "row 4: target 'c' is named by no request of nscvf"),
    ],
    ids=["asks and stays", "requested by nobody"],
)
def test_who_asks_does_not_stay_and_every_target_asks(tmp_path: Path, group: str, subject: str, says: str) -> None:
    lines = sequences.small()
    for one in lines:
        one[group] = one[group] | {subject: [1, 10]}
    with pytest.raises(BadInput, match=says):
        courses(tmp_path, lines)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_that_is_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    folder = sequences.write(tmp_path, sequences.small())
    file = folder / "sequence.jsonl"
    file.write_bytes(file.read_bytes()[: -1 - cut])
    with pytest.raises(BadInput, match=r"sequence\.jsonl, row 4: not JSON"):
        write_sequence_report(folder)
    sequences.write(tmp_path, sequences.small())
    file.write_bytes(file.read_bytes()[:-1])
    assert write_sequence_report(folder).is_file(), "the line is whole without its newline"


@pytest.mark.parametrize(
    ("about", "says"), [("{", "not JSON"), ("[]", "expected an object"), ('{"settings": {}}', "'provenance'")]
)
def test_what_stands_beside_the_lines_is_checked(tmp_path: Path, about: str, says: str) -> None:
    folder = sequences.write(tmp_path, sequences.small())
    (folder / "sequence.json").write_text(about)
    with pytest.raises(BadInput, match=rf"sequence\.json: .*{says}"):
        write_sequence_report(folder)
    (folder / "sequence.json").unlink()
    with pytest.raises(BadInput, match=r"sequence\.json: cannot be read"):
        write_sequence_report(folder)
    (folder / "sequence.jsonl").unlink()
    with pytest.raises(BadInput, match=r"sequence\.jsonl: no such file"):
        write_sequence_report(folder)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = sequences.write(tmp_path, sequences.small())
    (folder / "sequence.html").mkdir()
    with pytest.raises(BadInput, match=r"sequence\.html.*cannot be written"):
        write_sequence_report(folder)
    assert not list(folder.rglob(".*.partial"))
