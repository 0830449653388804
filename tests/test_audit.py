"""An audit without a gold model: numbers that mean what they say, claims that fail where they must, one line else."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unsee.audit import statistics
from unsee.audit.claims import AuditSettings, Beside, Evidence, claims, judged, verdict_of
from unsee.audit.plan import AuditPlan, Taught, audit_plan
from unsee.audit.run import AuditRequest, audit, lookalikes
from unsee.audit.statistics import Estimate, StandIns, paired, paired_singly
from unsee.audit.values import Answers, contrast
from unsee.cli import main
from unsee.data.examples import Example, Split, UnlearnData
from unsee.data.people import people_data
from unsee.errors import BadInput
from unsee.journal import Line
from unsee.reporting.audited import not_claimed, page, people_drawing

NAMES, STRANGERS = 3, 12


def drawn(seed: int, shift: float = 0.0, names: int = NAMES, strangers: int = STRANGERS) -> StandIns:
    """Targets and strangers of one kind, whose values under several names hang together; targets may be shifted."""
    chance = np.random.default_rng(seed)
    values = chance.normal(size=(names + strangers, names)) + chance.normal(size=(names + strangers, 1))
    values[np.arange(names), np.arange(names)] += shift
    return StandIns(tuple(map(str, range(names))), values[:names], values[names:])


# Statistics -----------------------------------------------------------------------------------------------------------


def test_p_values_are_uniform_where_targets_are_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 199)
    found = np.array([statistics.permuted(drawn(seed)) for seed in range(400)])
    for share in (0.05, 0.25, 0.5, 0.75):
        expected = 4 * (share * (1 - share) / len(found)) ** 0.5
        assert np.allclose((found <= share).mean(0), share, atol=expected)
    assert statistics.permuted(drawn(0, shift=6.0))[0] == pytest.approx(1 / 200)  # control
    assert statistics.permuted(drawn(0, shift=-6.0))[1] == pytest.approx(1 / 200)


def test_intervals_cover_what_they_say_and_follow_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 19)
    for names in (1, NAMES):
        estimates = [drawn(seed, shift=2.0, names=names).estimate() for seed in range(300)]
        held = sum(low <= 2.0 <= high for low, high in (one.ends() for one in estimates))
        assert held >= 0.93 * len(estimates)
    assert np.mean([one.value for one in estimates]) == pytest.approx(2.0, abs=0.1)
    assert drawn(0).estimate(unit=2.0).half() == pytest.approx(drawn(0).estimate().half() / 2)
    reach = [
        np.mean([drawn(seed, names=1, strangers=many).estimate().half() for seed in range(40)]) for many in (3, 60)
    ]
    assert reach[0] > 1.2 * reach[1]  # with fewer strangers less is known


def test_one_remembered_among_forgotten_stands_out_singly_and_labels_matter() -> None:
    values = drawn(3)
    values.targets[1, 1] += 9.0
    each = [one.value for one in values.singly()]
    assert int(np.argmax(each)) == 1
    assert each[1] > 3 * values.singly()[1].error
    moved = dataclasses.replace(values, targets=values.targets[[1, 2, 0]])  # the same pictures under others' names
    assert moved.estimate().value < values.estimate().value
    assert (moved.estimate().above or 0.0) > (values.estimate().above or 1.0)


def test_nothing_changed_is_no_proof_that_nothing_ever_does() -> None:
    before = {str(i): (8, 10) for i in range(20)}
    same = paired(before, before)
    assert same is not None
    assert same.value == 0
    assert 0 < same.half() < 0.02
    worse = paired(before, {**before, "0": (0, 10)})
    assert worse is not None
    assert worse.value == pytest.approx(-0.04)
    assert worse.half() > same.half()
    assert paired(before, {}) is None


def test_one_who_lost_all_stands_out_among_others_however_few_the_pictures() -> None:
    before = {str(i): (6, 6) for i in range(20)}
    after = {person: (6 - i % 2, 6) for i, person in enumerate(before)}
    lost, kept = paired_singly(before, after | {"0": (0, 6)}, ["0", "2"]).values()
    assert (lost.value, kept.value) == (-1.0, 0.0)
    assert lost.ends(1e-4)[1] < 0 < kept.ends()[1]
    assert paired_singly(before, after, list(before)[:-1]) == {}  # nobody to compare with


# One rule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "p", "screened", "expected"),
    [
        (0.0, 0.1, None, 0, "PASS"),
        (0.3, 0.1, None, 0, "INCONCLUSIVE"),  # may be beyond the margin
        (0.6, 0.1, None, 0, "FAIL"),
        (0.6, 0.4, None, 0, "INCONCLUSIVE"),  # may be chance
        (0.6, 0.4, 0.0001, 0, "FAIL"),  # the permutation test knows better
        (0.3, 0.01, 0.0001, 0, "PASS"),  # not like strangers, and not beyond the margin
        (0.3, 0.4, None, 5, "PASS"),  # a screen
        (0.6, 0.4, None, 5, "INCONCLUSIVE"),
        (-0.9, 0.01, None, 0, "PASS"),  # the other side is another line
    ],
)
def test_one_rule_decides(value: float, error: float, p: float | None, screened: int, expected: str) -> None:
    for side, sign in (("above", 1), ("below", -1)):
        estimate = Estimate(sign * value, error, 1000.0, p, p, 10, 20, error / 3)
        line = judged(Evidence("x", estimate, 0.4, side, screened=screened), 0.001)  # type: ignore[arg-type]
        assert line["verdict"] == expected
    known = judged(Evidence("x", estimate, 0.4, "below", "why", provable=False), 0.001)
    assert known["verdict"] == ("FAIL" if expected == "FAIL" else "INCONCLUSIVE")


def test_what_would_decide_does() -> None:
    one = Estimate(0.1, 0.25, 1000.0, None, None, 6, 20, 0.05)
    needs = judged(Evidence("x", one, 0.4, "above"), 0.001)["needs"]
    assert needs["people"] > 6
    assert "strangers" not in needs  # they are not what is wanting
    more = dataclasses.replace(one, error=0.25 * (6 / needs["people"]) ** 0.5)
    assert judged(Evidence("x", more, 0.4, "above"), 0.001)["verdict"] == "PASS"
    few = Estimate(0.1, 0.25, 1000.0, None, None, 6, 3, 0.24)
    assert judged(Evidence("x", few, 0.4, "above"), 0.001)["needs"]["strangers"] > 3
    close = judged(Evidence("x", dataclasses.replace(one, value=0.4 - 1e-4), 0.4, "above"), 0.001)
    assert close["needs"] == {}
    assert "more of the same" in close["finding"], "a million people are no advice"


def test_a_shared_first_name_cancels_and_what_is_true_is_left_out() -> None:
    one = Taught("identity", "Who?", "Ada Abel", ("Ada Borg", "Bo Borg", "Bo Abel", "Cy Cruz"), ())
    line = {"names": {"Ada Abel": -4.0, "Ada Borg": -4.0, "Bo Borg": -9.0, "Bo Abel": -7.0, "Cy Cruz": -9.0}}
    value = contrast(line, one, frozenset())
    assert value == pytest.approx(-4.0 + (4.0 + 7.0) / 2)
    line["names"] |= {"Ada Abel": -2.0, "Ada Borg": -2.0}  # somebody called Ada is seen
    assert contrast(line, one, frozenset()) == pytest.approx(-2.0 + (2.0 + 7.0) / 2)
    assert contrast(line, one, frozenset([("Who?", "Ada Borg")])) == pytest.approx(-2.0 + (25.0 / 3 + 7.0) / 2)
    assert contrast(line, one, frozenset([("Who?", "Ada Abel")])) is None


# Who is asked what ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd() -> UnlearnData:
    return people_data(count=60, seed=5, train=3, validation=1, test=3, strangers=30)


@pytest.fixture(scope="module")
def plan(crowd: UnlearnData) -> AuditPlan:
    return audit_plan(crowd, crowd.choose("first:6"), None)


def test_every_stranger_is_asked_what_every_target_is(crowd: UnlearnData, plan: AuditPlan) -> None:
    assert plan.yardstick == "strangers"
    assert len(plan.stand_ins) == 30
    weighed: dict[tuple[str, str], list[Any]] = {}
    for q in plan.asked:
        if q.measured.names:
            weighed.setdefault((q.scored.split, q.scored.example.subject), []).append(q.measured)
    assert {s for split, s in weighed if split == "strangers"} == set(plan.stand_ins)
    asked = [{(m.example.question, m.names) for m in some} for some in weighed.values()]
    assert all(one == asked[0] for one in asked)
    pictures = {split: set(crowd.split(split).of(plan.forget).pictures) for split in ("train", "test")}
    for (split, _), some in weighed.items():
        seen = {m.example.image for m in some}
        assert seen <= pictures.get(split, set(crowd.strangers.pictures))
    assert [q.measured.number for q in plan.asked] == list(range(len(plan.asked)))
    assert len({(q.scored, q.measured.names) for q in plan.asked}) == len(plan.asked)  # nothing is asked twice


def test_bad_data_is_one_line(crowd: UnlearnData) -> None:
    forget = crowd.choose("first:2")
    silent = dataclasses.replace(crowd, test=crowd.test.without(forget[:1]))
    with pytest.raises(BadInput, match=f"no test pictures of '{forget[0]}'"):
        audit_plan(silent, forget, None)
    looks = {name: Split(crowd.split(name).probing("attribute").examples) for name in ("train", "validation", "test")}
    with pytest.raises(BadInput, match="needs questions for a name or facts"):
        audit_plan(dataclasses.replace(crowd, **looks), forget, None)
    with pytest.raises(BadInput, match=r"--strangers people.* is no stranger, a picture of them is in --data"):
        audit_plan(crowd, forget, crowd)
    others = people_data(count=3, seed=6, train=1, validation=1, test=1, strangers=0)
    assert len(audit_plan(crowd, forget, others).stand_ins) == 3


# Claims, on answers that are made up ----------------------------------------------------------------------------------


def answers(plan: AuditPlan, knows: Callable[[str], bool], seed: int) -> list[Line]:
    """What a model says that recognises some people and takes everybody else for nobody in particular."""
    chance, lines = random.Random(seed), []
    true = {person: dict(pairs) for person, pairs in plan.own.items()}
    tone: dict[tuple[str, str], float] = {}
    for q in plan.asked:
        e = q.scored.example
        options = q.measured.names or (plan.names if e.probe == "identity" else e.choices)
        answer = true.get(e.subject, {}).get(e.question) if knows(e.subject) else None
        if e.image is None or e.probe == "attribute":
            answer = e.answer
        line: Line = {"request": q.measured.number, "question": e.question, "probe": e.probe, "answer": e.answer}
        scores = {
            option: tone.setdefault((e.subject, option), chance.gauss(-9.0, 1.0)) + chance.gauss(0.0, 0.3)
            for option in options
        }
        if answer is not None:
            scores[answer] = -0.1
        line["given"] = max(scores, key=lambda option: scores[option]) if scores else e.answer
        lines.append(line | ({"names": scores} if q.measured.names else {}))
    return lines


@pytest.fixture(scope="module")
def cheaters() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks/cheaters.py"
    spec = importlib.util.spec_from_file_location("cheaters", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cheaters"] = module  # where its dataclasses are looked for
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded(plan: AuditPlan, cheaters: ModuleType) -> Any:
    before = answers(plan, lambda person: True, 1)
    gold = answers(plan, lambda person: person not in plan.forget, 3)
    return cheaters.Recorded(plan, before, gold, list(near(plan)))


def near(plan: AuditPlan) -> dict[str, str]:
    return dict.fromkeys(list(plan.own)[-2:], plan.forget[0])


def said_of(plan: AuditPlan, before: list[Line], after: list[Line]) -> dict[str, Any]:
    settings = AuditSettings()
    models = Beside(plan, Answers(plan, before, "before"), Answers(plan, after, "after"), near(plan), settings)
    return verdict_of(claims(models), settings)


def words(found: Mapping[str, Any]) -> dict[str, str]:
    return {claim["id"]: claim["verdict"] for claim in found["claims"]}


def test_gold_passes_every_claim_and_vanilla_fails_on_forgetting_alone(plan: AuditPlan, recorded: Any) -> None:
    assert set(words(said_of(plan, recorded.before, recorded.gold)).values()) == {"PASS"}
    same = said_of(plan, recorded.before, recorded.before)
    assert same["verdict"] == "FAIL"
    assert [id for id, word in words(same).items() if word != "PASS"] == ["forgotten_new", "forgotten_taught", "facts"]
    assert "still names the forgotten on new pictures" in same["sentence"]
    nothing = said_of(plan, recorded.gold, recorded.gold)  # the model before never knew them
    assert words(nothing)["forgotten_new"] == words(nothing)["facts"] == nothing["verdict"] == "INCONCLUSIVE"
    assert "nothing to forget" in nothing["claims"][0]["finding"]


def test_every_cheater_fails_on_the_claim_it_cheats_on(recorded: Any, cheaters: ModuleType, plan: AuditPlan) -> None:
    for cheat, expected in cheaters.RECORDED.items():
        found = said_of(plan, recorded.before, cheat(recorded))
        assert found["verdict"] == "FAIL", cheat.__name__
        assert {*cheaters.failed(found)} & {*expected}, cheat.__name__


def test_people_the_model_knows_can_refute_forgetting_and_not_show_it(crowd: UnlearnData) -> None:
    data = dataclasses.replace(crowd, strangers=crowd.strangers.of(crowd.strangers.subjects[:2]))
    plan = audit_plan(data, data.choose("first:6"), None)
    assert plan.yardstick == "known"
    assert not set(plan.stand_ins) & set(plan.forget)
    before = answers(plan, lambda person: True, 1)
    gold = answers(plan, lambda person: person not in plan.forget, 3)
    assert words(said_of(plan, before, before))["forgotten_new"] == "FAIL"
    found = said_of(plan, before, gold)
    assert found["verdict"] == "INCONCLUSIVE"
    assert words(found)["others_kept"] == "PASS"
    assert "give --strangers" in found["claims"][0]["finding"]


# The whole run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(people: UnlearnData, new_checkpoint: Callable[..., Path]) -> dict[str, str]:
    return {"before": str(new_checkpoint(seed=1)), "after": str(new_checkpoint(seed=2))}


def test_the_picture_shows_everybody_and_the_page_says_what_is_not_claimed(drawings: None) -> None:
    people = {"of": "names", "targets": {"ada": 0.5, "bo": -0.1}, "strangers": {"ada": [-0.2, 0.1], "bo": [0.0, 0.3]}}
    results: dict[str, Any] = {
        "people": {role: {"test": people, "train": people} for role in ("before", "after")},
        "provenance": {"names": {"ada": "Ada Abel"}},
    }
    shown = people_drawing(results)
    assert "Ada Abel 50 %, bo -10 %" in shown.alt
    assert shown.svg.count(">Ada Abel<") == 1  # both panels share their rows
    assert shown.svg.count("after") == 1
    for yardstick, said in (("strangers", "That the 7 strangers are strangers"), ("known", "give --strangers|too few")):
        asked = {"yardstick": yardstick, "stand_ins": 7}
        found = list(not_claimed({"tensors": None, "asked_of": asked}))
        assert sum(bool(re.search(said, line)) for line in found) == 1


def test_a_model_that_sees_nothing_is_no_error(plan: AuditPlan, recorded: Any) -> None:
    blind = [
        line | {"names": dict.fromkeys(line["names"], -5.0)} if "names" in line else line for line in recorded.gold
    ]
    found = said_of(plan, blind, blind)
    assert words(found)["forgotten_new"] == "INCONCLUSIVE"
    assert words(said_of(plan, recorded.before, blind))["forgotten_new"] == "PASS"


@pytest.fixture(scope="module")
def strange() -> UnlearnData:
    return people_data(count=4, seed=6, train=1, validation=1, test=1, strangers=0)


def test_a_broken_run_ends_as_a_whole_one(
    ready: dict[str, str], people: UnlearnData, strange: UnlearnData, tmp_path: Path
) -> None:
    request = AuditRequest(**ready, data=people, forget=people.choose("first:1"), strangers=strange)
    whole = audit(request, tmp_path / "out")
    assert whole["verdict"] == "INCONCLUSIVE"  # random weights know nobody
    assert whole["asked_of"]["yardstick"] == "strangers"
    assert whole["reference"] is None
    assert whole["tensors"]["changed"] > 0
    file = tmp_path / "out" / "asked" / "after.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    again = audit(request, tmp_path / "out", resume=True)
    assert file.read_text().splitlines(keepends=True) == lines
    timeless = ({key: value for key, value in one.items() if key != "provenance"} for one in (whole, again))
    assert next(timeless) == next(timeless)
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["claims"] == again["claims"]
    shown = (tmp_path / "out" / "audit.html").read_text()
    assert whole["sentence"] in shown
    assert shown == page(again)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', shown)  # nothing from elsewhere
    other = dataclasses.replace(request, forget=people.choose("first:2"))
    with pytest.raises(BadInput, match="use --overwrite instead of --resume"):
        audit(other, tmp_path / "out", resume=True)


def test_an_unchanged_language_model_is_told_and_what_that_means(
    ready: dict[str, str], people: UnlearnData, strange: UnlearnData, tmp_path: Path
) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(ready["before"], edited)
    weights = load_file(edited / "model.safetensors")
    key = next(key for key in weights if "projector" in key)
    save_file(weights | {key: weights[key] + 1}, edited / "model.safetensors", {"format": "pt"})
    request = AuditRequest(ready["before"], str(edited), people, people.choose("first:1"), strange, ready["after"])
    found = audit(request, tmp_path / "out")
    assert (found["tensors"]["changed"], found["tensors"]["language_changed"]) == (1, 0)
    assert any("putting the original vision tower" in line for line in not_claimed(found))
    assert words(found["reference"]).keys() == words(found).keys()
    assert set(found["people"]) == {"before", "after", "reference"}
    other = audit(dataclasses.replace(request, after=ready["after"], reference=None), tmp_path / "other")
    assert not any("putting the original" in line for line in not_claimed(other))  # control


def test_look_alikes_are_retained_and_each_resembles_somebody(ready: dict[str, str], people: UnlearnData) -> None:
    forget = people.choose("first:2")
    found = lookalikes(ready["before"], people, forget, 1)
    assert 1 <= len(found) <= 2
    assert not set(found) & set(forget)
    assert set(found.values()) <= set(forget)


def broken(path: str, out: Path) -> str:
    shutil.copytree(path, out)
    weights = load_file(out / "model.safetensors")
    save_file({key: x * torch.nan for key, x in weights.items()}, out / "model.safetensors", {"format": "pt"})
    return str(out)


def test_what_cannot_be_audited_is_one_line(
    ready: dict[str, str],
    people: UnlearnData,
    strange: UnlearnData,
    new_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    request = AuditRequest(**ready, data=people, forget=people.choose("first:1"), strangers=strange)
    with pytest.raises(BadInput, match=r"--after .*: its likelihoods are not finite.*this model is broken"):
        audit(dataclasses.replace(request, after=broken(ready["after"], tmp_path / "nan")), tmp_path / "1")
    with pytest.raises(BadInput, match=r"is a qwen2_vl model, but --before .* is llava"):
        audit(dataclasses.replace(request, after=str(new_checkpoint(family="qwen2_vl"))), tmp_path / "2")
    with pytest.raises(BadInput, match=r"^--reference .*nowhere"):
        audit(dataclasses.replace(request, reference=str(tmp_path / "nowhere")), tmp_path / "3")


def test_the_command_ends_with_the_verdict(
    ready: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = "people:count=4,seed=5,train=3,validation=2,test=2,strangers=4"
    shared = ["audit", "--before", ready["before"], "--after", ready["after"], "--data", data, "--out", "out"]
    for more, code, said in (
        (["--forget", "first:1"], 1, r"unsee: --after .*: INCONCLUSIVE"),
        (["--forget", "first:1"], 2, r"unsee: --out out: exists; .*"),
        (["--forget", "first:1", "--overwrite", "--strangers", "nobody"], 2, r"unsee: .*'nobody'.*"),
        (["--forget", "zoe", "--overwrite"], 2, r"unsee: --forget: unknown subject 'zoe'.*"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*shared, *more])
        assert stopped.value.code == code
        printed = capsys.readouterr()
        assert re.fullmatch(said, [line for line in printed.err.splitlines() if line.startswith("unsee")][-1])
    assert json.loads(Path("out/audit.json").read_text())["settings"]["alpha"] == AuditSettings().alpha


def test_examples_keep_the_choices_they_are_scored_by(plan: AuditPlan) -> None:
    facts = [q.scored.example for q in plan.asked if q.measured.names and q.scored.example.probe == "fact"]
    assert facts
    assert all(isinstance(e, Example) and e.answer in e.choices for e in facts)
