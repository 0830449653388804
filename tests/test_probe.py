"""Linear probes: what is planted is found where it was planted and not before, what is not there is not found."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import TINIES, TINY, ragged, tiny
from torch import Tensor, nn

import unsee.attacks.probe as probing
from unsee.attacks.probe import (
    PROJECTOR,
    TOWER,
    Probe,
    Probing,
    evenly_deep,
    last_positions,
    probe,
    probe_data,
    random_model,
    states,
)
from unsee.attacks.relearn_run import cell, gain
from unsee.checkpoint.folder import CheckpointFolder
from unsee.cli import main
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded
from unsee.reporting.probing import GROUPS, sections

SMALL = Probing(pictures=2, test_pictures=2, others=3, depths=2)
QUESTION = "Who is this person?"
SUBJECTS = 6


def clouds(per_subject: int, seed: int, apart: float, width: int = 12) -> tuple[Tensor, list[str]]:
    """States around one centre per subject, the same centres for every seed, subjects taking turns."""
    centres = apart * torch.randn(SUBJECTS, width, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(per_subject * SUBJECTS, width, generator=torch.Generator().manual_seed(seed))
    return noise + centres.repeat(per_subject, 1), [f"s{i}" for i in range(SUBJECTS)] * per_subject


def share_right(probe: Probe, x: Tensor, subjects: Sequence[str]) -> float:
    return cell(probe.count(x, subjects))["value"] or 0.0


# The probe ------------------------------------------------------------------------------------------------------------


def test_what_is_there_is_found_and_shuffled_labels_give_chance() -> None:
    learn, who = clouds(12, 1, apart=2.0)
    test, true = clouds(40, 2, apart=2.0)
    shuffled = random.Random(0).sample(who, len(who))
    found, chance = Probe.fit(learn, who).count(test, true), cell(Probe.fit(learn, shuffled).count(test, true))
    assert cell(found)["value"] == pytest.approx(1.0, abs=0.03)
    assert chance["low"] < 1 / SUBJECTS < chance["high"] < 0.9
    assert Probe.fit(learn, shuffled).left_out < 0.4 < Probe.fit(learn, who).left_out
    assert {n for _, n in found.values()} == {40}
    assert set(found) == set(who)


def test_the_order_of_pictures_plays_no_part() -> None:
    learn, who = clouds(8, 1, apart=0.7)
    test, true = clouds(30, 2, apart=0.7)
    order = torch.randperm(len(who), generator=torch.Generator().manual_seed(3))
    mixed = [who[i] for i in order.tolist()]
    straight = Probe.fit(learn, who).count(test, true)
    assert Probe.fit(learn[order], mixed).count(test, true) == straight
    assert Probe.fit(learn[order], who).count(test, true) != straight  # control: pictures under other names
    back = torch.arange(len(true)).flip(0)
    assert Probe.fit(learn, who).count(test[back], true[::-1]) == straight


def left_out_by_hand(probe: Probe, x: Tensor, who: Sequence[str], leave: bool = True) -> float:
    """Fit again without each picture, with the weights, the scaling and the ridge of the whole."""
    x = (x.double() - probe.centre) * probe.scale
    label = torch.tensor([probe.subjects.index(s) for s in who])
    count, numbers = torch.bincount(label), torch.arange(len(x))

    def within(kept: Tensor, means: Tensor) -> Tensor:
        scatter = x[kept] - means[label[kept]]
        return scatter.T @ (scatter / (count[label[kept]] * len(count))[:, None])

    def means_of(kept: Tensor) -> Tensor:
        return torch.stack([x[kept][label[kept] == k].mean(0) for k in range(len(count))])

    everybody = numbers >= 0
    whole = within(everybody, means_of(everybody))
    ridge = probe.strength * whole.trace() / len(whole) * torch.eye(len(whole), dtype=x.dtype)
    right = torch.zeros(len(count), dtype=x.dtype)
    for i in range(len(x)):
        kept = numbers != i if leave else everybody
        means = means_of(kept)
        away = x[i] - means
        distances = (away @ torch.linalg.inv(within(kept, means) + ridge) * away).sum(1)
        right[label[i]] += distances.argmin() == label[i]
    return float((right / count).mean())


@pytest.mark.parametrize(("per_subject", "width"), [(2, 12), (6, 12), (3, 40)])
def test_leaving_out_in_closed_form_is_leaving_out(per_subject: int, width: int) -> None:
    learn, who = clouds(per_subject, 1, apart=0.6, width=width)
    learn, who = learn[:-1], who[:-1]  # one subject has fewer
    if per_subject == 2:
        learn, who = torch.cat([learn, learn[:1] + 1]), [*who, "s5"]
    found = Probe.fit(learn, who)
    assert found.left_out == pytest.approx(left_out_by_hand(found, learn, who))
    assert found.left_out < left_out_by_hand(found, learn, who, leave=False)  # control: nobody is left out


def test_the_ridge_is_chosen_without_the_test_pictures() -> None:
    """Many idle directions ask for a ridge; the one that is taken is among the best on pictures never seen."""
    learn, who = clouds(4, 1, apart=1.0, width=60)
    test, true = clouds(60, 2, apart=1.0, width=60)
    found = Probe.fit(learn, who)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unsee.attacks.probe.STRENGTHS", (1e-6,))
        weak = Probe.fit(learn, who)
    assert found.strength > weak.strength
    assert found.left_out >= weak.left_out
    assert share_right(found, test, true) > share_right(weak, test, true)


def test_units_and_dead_features_change_nothing() -> None:
    learn, who = clouds(6, 1, apart=0.6)
    test, true = clouds(20, 2, apart=0.6)
    units = torch.logspace(-4, 4, learn.shape[1])

    def dressed(x: Tensor) -> Tensor:
        """Other units, a constant feature, and one that varies by rounding alone; more directions than pictures."""
        rounding = 1e4 * (1 + 1e-7 * (torch.arange(len(x)) % 2))
        return torch.cat([x * units + 3, torch.full((len(x), 50), 7.0), rounding[:, None]], 1)

    plain, other = Probe.fit(learn, who), Probe.fit(dressed(learn), who)
    assert other.count(dressed(test), true) == plain.count(test, true)
    assert (other.scale == 0).sum() == 51
    assert other.count(torch.cat([test, dressed(test)[:, 12:]], 1), true) != plain.count(test, true)  # control


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Probing)])
def test_settings_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: expected more than zero"):
        Probing(**{name: 0})


# The stages -----------------------------------------------------------------------------------------------------------


def open_tiny(family: str, data: UnlearnData, checkpoint: Path) -> Loaded:
    model, processor = tiny(family, data)
    return Loaded(model, Batcher(processor, FAMILIES[family]), FAMILIES[family], CheckpointFolder(checkpoint))


@pytest.fixture(scope="module", params=TINIES)
def opened(request: pytest.FixtureRequest, people: UnlearnData, checkpoint: Path) -> tuple[Loaded, UnlearnData]:
    """A tiny model of each family, and pictures of the sizes it can see."""
    data = people if request.param == "llava" else ragged(people)
    return open_tiny(request.param, data, checkpoint), data


def test_states_are_those_of_a_whole_pass(opened: tuple[Loaded, UnlearnData]) -> None:
    loaded, data = opened
    images = list(data.train.pictures)[:7]
    entered: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        enter = type(loaded.visual).enter

        def spy(self: Any, given: Any) -> Any:
            found = enter(self, given)
            entered.append(len(found))
            return found

        patch.setattr(type(loaded.visual), "enter", spy)
        found = states(loaded, images, QUESTION, 2, "test")
    assert sum(entered) == len(images), "every picture passes once"
    first = -(-len(loaded.visual.blocks) // 2)
    assert list(found) == [f"vision block {first}", TOWER, PROJECTOR, "language layer 1", "language layer 2"]
    for place, image in enumerate(images):
        given = loaded.batcher.images([image])
        batch = loaded.batcher.for_generation([Example(QUESTION, "", "", image, "identity")])
        with torch.no_grad(), last_positions({"1": loaded.family.language_model(loaded.model).layers[0]}) as latest:
            loaded.model.model(**batch)
            block = loaded.visual.run(loaded.visual.enter(given), stop=first).mean()[0]
            tokens = loaded.visual.features(given).mean()[0]
        expected = {f"vision block {first}": block, PROJECTOR: tokens, "language layer 1": latest["1"][0]}
        for name, value in expected.items():
            torch.testing.assert_close(found[name][place], value, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(found[name][place - 1], value, rtol=1e-4, atol=1e-5), name  # control: another
    left = [hook for module in loaded.model.modules() for hook in module._forward_hooks.values()]
    assert not any("last_positions" in getattr(hook, "__qualname__", "") for hook in left)  # transformers has its own


def test_states_do_not_depend_on_neighbours(opened: tuple[Loaded, UnlearnData]) -> None:
    loaded, data = opened
    images = list(data.train.pictures)[:6]
    order = [3, 1, 5, 0, 4, 2]
    together, apart = (states(loaded, shown, QUESTION, 3, "test") for shown in (images, [images[i] for i in order]))
    for name, values in together.items():
        torch.testing.assert_close(apart[name], values[order], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(apart[name], values, rtol=1e-4, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Noise:
    """A picture that shows nobody."""

    number: int

    @property
    def label(self) -> str:
        return f"noise {self.number}"

    def open(self) -> Image.Image:
        return Image.frombytes("RGB", (TINY.side, TINY.side), random.Random(self.number).randbytes(3 * TINY.side**2))


def test_a_planted_signal_is_found_from_there_on_and_not_before(people: UnlearnData, checkpoint: Path) -> None:
    """Noise under made-up names, until the second block of the tower adds a mark of the name."""
    loaded = open_tiny("llava", people, checkpoint)
    images = [Noise(number) for number in range(160)]
    names = [f"s{number % 4}" for number in range(160)]
    marks = 3 * torch.randn(4, TINY.vision_width, generator=torch.Generator().manual_seed(1))
    passed = 0

    def plant(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal passed
        which = [number % 4 for number in range(passed, passed + len(output))]
        passed += len(output)
        return output + marks[which][:, None]

    def read() -> dict[str, float]:
        seen = states(loaded, images, QUESTION, 3, "test")
        return {s: share_right(Probe.fit(x[:80], names[:80]), x[80:], names[80:]) for s, x in seen.items()}

    clean = read()
    handle = loaded.visual.blocks[1].register_forward_hook(plant)
    planted = read()
    handle.remove()
    assert passed == len(images)
    stages = list(planted)
    at = stages.index("vision block 2")
    assert at == 1
    assert planted[stages[0]] == clean[stages[0]] < 0.45
    assert min(planted[stage] for stage in stages[at:]) > 0.8
    assert max(clean.values()) < 0.45  # control: nothing planted, nothing found anywhere


def test_random_weights_follow_the_seed(checkpoint: Path, people: UnlearnData) -> None:
    images = list(people.train.pictures)[:3]

    def drawn(seed: int) -> Tensor:
        return torch.cat(list(states(random_model(str(checkpoint), seed), images, QUESTION, 1, "test").values()), 1)

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    torch.testing.assert_close(drawn(0), drawn(0), rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.allclose(drawn(0), drawn(1))


@pytest.mark.parametrize(
    ("count", "depths", "places"),
    [(24, 4, (6, 12, 18, 24)), (3, 4, (1, 2, 3)), (2, 4, (1, 2)), (5, 2, (3, 5)), (4, 1, (4,))],
)
def test_layers_are_read_evenly_with_the_last(count: int, depths: int, places: tuple[int, ...]) -> None:
    assert evenly_deep(count, depths) == places


# The whole run --------------------------------------------------------------------------------------------------------


def test_nobody_is_tested_on_what_was_learnt_from(people: UnlearnData) -> None:
    forget = people.choose("first:2")
    plan = probe_data(people, forget, Probing(pictures=1, test_pictures=2, others=1))
    assert plan.forget == forget
    assert len(plan.others) == 1
    assert plan.others[0] not in forget
    assert set(plan.learn.values()) == set(plan.test.values()) == {*forget, *plan.others}
    assert len(plan.learn) == len(plan.test) == 2 * 3
    assert set(plan.learn) <= {*people.train.pictures, *people.validation.pictures}
    assert set(plan.test) <= {*people.test.pictures}
    assert not set(plan.test) & set(plan.learn)
    assert plan.question in {e.question for e in people.train if e.probe == "identity"}
    alone = probe_data(people, forget[:1], SMALL)
    assert len(alone.others) == 3, "one forgotten subject is told from the retained"


def test_what_cannot_be_probed_is_bad_input(people: UnlearnData) -> None:
    def without(split: str, subjects: Sequence[str]) -> UnlearnData:
        return dataclasses.replace(people, **{split: people.split(split).without(subjects)})

    one, other = people.choose("first:2")
    retained = [s for s in people.subjects if s != one]
    with pytest.raises(BadInput, match=f"'{one}' has 4 .* and no test pictures; a probe needs"):
        probe_data(without("test", [one]), [one], SMALL)
    with pytest.raises(BadInput, match=f"'{one}' has 1 .* and some test pictures; a probe needs"):
        probe_data(without("validation", [one]), [one], Probing(pictures=1))
    with pytest.raises(BadInput, match="no retained subject has two"):
        probe_data(without("test", retained), [one], SMALL)
    assert other not in probe_data(without("test", [other]), [one], SMALL).others


@pytest.fixture(scope="module")
def pair(new_checkpoint: Callable[..., Path]) -> dict[str, str]:
    return {"vanilla": str(new_checkpoint(seed=1)), "gold": str(new_checkpoint(seed=2))}


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    return {role: value["stages"] for role, value in results.items() if role not in ("settings", "provenance")}


def test_excess_is_paired_by_subject_and_a_broken_run_ends_as_a_whole_one(
    pair: dict[str, str], people: UnlearnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = people.choose("first:2")
    whole = probe(pair, people, forget, SMALL, 0, tmp_path / "whole")
    assert list(numbers(whole)) == ["vanilla", "gold", "random"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "probes.jsonl").read_text().splitlines()]
    right = {line["role"]: line["stages"][TOWER]["right"] for line in lines}
    tower = whole["vanilla"]["stages"][TOWER]
    for group in GROUPS:
        before, after = (
            {s: (n[0], n[1]) for s, n in right[role].items() if (s in forget) == (group == "forget")}
            for role in ("gold", "vanilla")
        )
        assert tower["over_gold"][group] == gain(before, after)
        assert tower[group] == cell(after)
    assert whole["gold"]["stages"][TOWER]["over_gold"] is None is whole["random"]["stages"][TOWER]["over_random"]
    assert numbers(whole)["vanilla"] != numbers(whole)["gold"] != numbers(whole)["random"]  # control

    out, seen, examined = tmp_path / "broken", [], probing._probed

    def breaks(role: str, *rest: Any) -> Any:
        seen.append(role)
        if len(seen) == 2:
            raise BadInput("the power went out")
        return examined(role, *rest)

    monkeypatch.setattr(probing, "_probed", breaks)
    with pytest.raises(BadInput, match="power"):
        probe(pair, people, forget, SMALL, 0, out)
    assert not (out / "probes.json").exists()
    assert numbers(probe(pair, people, forget, SMALL, 0, out, resume=True)) == numbers(whole)
    assert seen == ["vanilla", "gold", "gold", "random"]
    probe({**pair, "gold": pair["vanilla"]}, people, forget, SMALL, 0, out, resume=True)
    assert seen[4:] == ["gold"], "other weights are probed anew"
    with pytest.raises(BadInput, match=r"probes\.jsonl: probes of other data or settings; use --overwrite"):
        probe(pair, people, forget, SMALL, 1, out, resume=True)


def test_models_that_cannot_stand_side_by_side_are_refused(
    pair: dict[str, str], people: UnlearnData, new_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    forget = people.choose("first:1")
    with pytest.raises(BadInput, match=r"--model random=.*'random' is a key of probes\.json"):
        probe({"random": pair["gold"]}, people, forget, SMALL, 0, tmp_path)
    shorter = str(new_checkpoint(layer=-3))
    with pytest.raises(
        BadInput, match=r"--model other: has .* vision block 1, tower output, .*'gold' has .* vision block 2"
    ):
        probe({"gold": pair["gold"], "other": shorter}, people, forget, Probing(pictures=2), 0, tmp_path)


def test_the_command_leaves_what_it_says(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"
    models = f"--model gold={pair['gold']} --model cvf={pair['vanilla']}"
    given = f"attack probe {models} --data {data} --set depths=1".split()

    def ending(*more: str, out: Path = out) -> int:
        with pytest.raises(SystemExit) as stopped:
            main([*given, "--out", str(out), *more])
        return int(stopped.value.code or 0)

    assert ending("--forget", "first:1", "--set", "pictures=0") == 2
    assert "--set pictures=0: expected more than zero" in capsys.readouterr().err
    assert ending("--forget", "nobody") == 2
    assert "unknown subject 'nobody'" in capsys.readouterr().err
    assert not out.exists()
    assert ending("--forget", "first:1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "probes.json").read_text())
    stages = list(told["cvf"]["stages"])
    assert stages == [TOWER, PROJECTOR, "language layer 2"]
    rows = list(csv.DictReader((out / "probes.csv").read_text().splitlines()))
    assert [(r["role"], r["stage"], r["group"]) for r in rows] == [
        (role, stage, group) for role in ("gold", "cvf", "random") for stage in stages for group in GROUPS
    ]
    first, _ = sections(told)
    assert first.head == ("stage", "gold", "cvf", "random", "cvf over gold")
    page = (out / "probes.html").read_text()
    assert all(f'<th scope="row">{stage}</th>' in page for stage in stages)
    assert page.count("<svg") == 2
    assert ending("--forget", "first:1", out=tmp_path / "other") == 0
    assert TOWER in capsys.readouterr().out
    assert ending("--forget", "first:1") == 2
    assert "exists" in capsys.readouterr().err
