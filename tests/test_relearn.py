"""Relearning: everybody gets the same attack, no model is changed by it, and a broken run ends as a whole one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from relearning import SEED, SHORT
from tiny import TINIES, ragged, tiny

from unsee.attacks import relearn as attacking
from unsee.attacks.relearn import Attacker, Questions, adapters, answer_losses
from unsee.attacks.relearn_plan import Attack, AttackRequest, Relearning, asked_of, attacks, evaluation_sets
from unsee.attacks.relearn_run import outcome, relearn, table
from unsee.checkpoint.folder import CheckpointFolder
from unsee.cli import main
from unsee.data.examples import Example, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation.predict import generate, longest_answer
from unsee.models.batching import Batcher, answer_loss
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded


@pytest.fixture(scope="module")
def two(people: UnlearnData) -> tuple[str, ...]:
    """The smallest forget set that can be halved."""
    return people.choose("first:2")


@pytest.fixture(scope="module", params=TINIES)
def opened(request: pytest.FixtureRequest, people: UnlearnData, checkpoint: Path) -> tuple[Loaded, UnlearnData]:
    """A tiny model of each family, and pictures of the sizes it can see."""
    data = people if request.param == "llava" else ragged(people)
    model, processor = tiny(request.param, data)
    family = FAMILIES[request.param]
    return Loaded(model, Batcher(processor, family), family, CheckpointFolder(checkpoint)), data


def test_pictures_seen_once_give_the_loss_of_pictures_seen_every_time(opened: tuple[Loaded, UnlearnData]) -> None:
    loaded, data = opened
    asked = list(asked_of(data.train).examples[:9])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, list(loaded.model.parameters()), allow_unused=True)
        return [g for g in found if g is not None]

    parts = answer_losses(loaded, {"attacked": asked[:5], "replay": asked[5:]})
    expected = [answer_loss(loaded.model, loaded.batcher.for_training(part)) for part in (asked[:5], asked[5:])]
    torch.testing.assert_close([parts["attacked"], parts["replay"]], expected)
    for now, then in zip(gradients(sum(parts.values())), gradients(sum(expected)), strict=True):
        torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-5)
    other = answer_losses(loaded, {"attacked": asked[1:6]})["attacked"]
    assert not torch.isclose(other, expected[0], rtol=1e-4)
    assert set(answer_losses(loaded, {"attacked": asked[:1], "replay": []})) == {"attacked"}


def test_pictures_seen_once_give_the_answers_of_generate(
    opened: tuple[Loaded, UnlearnData], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = opened
    asked = asked_of(data.test)
    expected = generate(loaded, asked.examples, longest_answer(loaded, asked.examples))
    monkeypatch.setattr(attacking, "ROWS", 10)  # several chunks, pictures cut in two

    def said() -> list[str]:
        return [text for chunk in Questions(loaded, asked, ()).answers() for text in chunk]

    assert len(set(expected)) > 3
    assert said() == expected
    original = attacking.visual_tokens
    monkeypatch.setattr(attacking, "visual_tokens", lambda *given: [0 * tokens for tokens in original(*given)])
    assert said() != expected


def attacker(loaded: Loaded, data: UnlearnData, forget: Sequence[str], settings: Relearning) -> Attacker:
    return Attacker(loaded, evaluation_sets(data, forget, settings), tuple(data.names.values()), settings)


def test_without_steps_nothing_is_gained(loaded: Loaded, people: UnlearnData, two: tuple[str, ...]) -> None:
    def gained(settings: Relearning) -> dict[str, float]:
        under_attack = attacker(loaded, people, two, settings)
        plan = attacks(people, two, settings, SEED)
        records = []
        for attack in plan:
            curve, seconds = under_attack.attack(attack, "attack")
            records.append(dataclasses.asdict(attack) | {"curve": curve, "seconds": seconds})
        found = outcome(records)
        assert [point["step"] for point in found["curve"]] == list(settings.measured)
        return {group: found[group]["gain"]["value"] for group in ("held_out", "attacked", "retain")}

    assert set(gained(dataclasses.replace(SHORT, steps=0)).values()) == {0.0}
    strong = dataclasses.replace(SHORT, questions=6, steps=40, every=40, learning_rate=1e-2)
    assert gained(strong)["attacked"] > 0.2


@pytest.mark.parametrize("stops", [False, True])
def test_the_model_is_left_as_it_was(
    loaded: Loaded, people: UnlearnData, two: tuple[str, ...], stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}

    def changed() -> set[str]:
        return {name for name, tensor in loaded.model.state_dict().items() if not torch.equal(tensor, start[name])}

    under_attack, during = attacker(loaded, people, two, SHORT), []
    original = Questions.count

    def look(self: Questions) -> Any:
        during.append(changed())
        if stops and len(during) > 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Questions, "count", look)
    attack = attacks(people, two, SHORT, SEED)[0]
    if stops:
        with pytest.raises(KeyboardInterrupt):
            under_attack.attack(attack, "attack")
    else:
        first, _ = under_attack.attack(attack, "attack")
        assert not changed()
        second, _ = under_attack.attack(attack, "attack")
        assert first == second
    assert not changed()
    visual = set(loaded.visual.named_parameters())
    assert during[-1] & visual, "the vision tower was not trained"
    assert during[-1] - visual, "the language model was not trained"


def states_during(
    loaded: Loaded, data: UnlearnData, forget: Sequence[str], settings: Relearning, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], set[str]]:
    """One attack: its curve, and which of the model's own tensors it ever moved."""
    start = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    under_attack, moved = attacker(loaded, data, forget, settings), set[str]()
    original = Questions.count

    def look(self: Questions) -> Any:
        now = loaded.model.state_dict()
        moved.update(name for name, tensor in start.items() if not torch.equal(tensor, now[name]))
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Questions, "count", look)
        curve, _ = under_attack.attack(attacks(data, forget, settings, SEED)[0], "attack")
    assert loaded.model.state_dict().keys() == start.keys()
    assert all(torch.equal(tensor, start[name]) for name, tensor in loaded.model.state_dict().items())
    return curve, moved


STRONG = dataclasses.replace(SHORT, questions=6, steps=40, every=20, learning_rate=1e-2)
STRONG = dataclasses.replace(STRONG, visual_learning_rate=1e-2, lora_learning_rate=3e-2)


@pytest.mark.parametrize("of_attacker", ["visual", "lora", "full"])
def test_each_attacker_moves_what_it_says_and_leaves_the_model_as_it_was(
    loaded: Loaded, people: UnlearnData, two: tuple[str, ...], of_attacker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(STRONG, attacker=of_attacker)
    curve, moved = states_during(loaded, people, two, settings, monkeypatch)
    visual = set(loaded.visual.named_parameters())
    language = {name for name, _ in loaded.model.named_parameters()} - visual
    assert bool(moved & visual) is (of_attacker != "lora"), "the adapters never touch the weights"
    assert bool(moved & language) is (of_attacker == "full")
    assert curve[-1]["forget"] != curve[0]["forget"], "the attack does nothing"
    still, untouched = states_during(loaded, people, two, dataclasses.replace(settings, steps=0), monkeypatch)
    assert not untouched
    assert len(still) == 1
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_adapters_start_from_nothing_and_are_drawn_by_the_seed(opened: tuple[Loaded, UnlearnData]) -> None:
    loaded, data = opened
    asked = list(asked_of(data.train).examples[:4])
    step = {"attacked": asked, "replay": []}

    def loss() -> torch.Tensor:
        return answer_losses(loaded, step)["attacked"]

    before = loss().detach()
    drawn: dict[str, list[torch.Tensor]] = {}
    reached: set[str] = set()
    for seed in ("a", "a", "b"):
        with adapters(loaded, 2, seed) as added:
            layers = {name.rpartition(".")[0] for name in added}
            assert all(isinstance(loaded.model.get_submodule(name), torch.nn.Linear) for name in layers)
            torch.testing.assert_close(loss().detach(), before, rtol=0, atol=0)
            loss().backward()
            assert not any(p.grad is not None and p.grad.abs().max() > 0 for p in loaded.model.parameters())
            reached = {name for name, p in added.items() if p.grad is not None and p.grad.abs().max() > 0}
            known = drawn.setdefault(seed, [p.detach().clone() for p in added.values()])
            assert all(torch.equal(one, other) for one, other in zip(known, added.values(), strict=True))
            with torch.no_grad():
                for name in reached:
                    added[name].fill_(0.3)
            assert not torch.isclose(loss(), before), "the adapters are not in the way"
        torch.testing.assert_close(loss().detach(), before, rtol=0, atol=0)
    assert any(name.startswith(("model.visual", "model.vision")) for name in reached)
    assert any(name.startswith("model.language") for name in reached)
    assert not torch.equal(drawn["a"][0], drawn["b"][0])


@pytest.fixture(scope="module")
def pair(new_checkpoint: Any) -> dict[str, str]:
    """Two models that answer differently."""
    return {"vanilla": str(new_checkpoint()), "gold": str(new_checkpoint(seed=1))}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "attacks.jsonl").read_text().splitlines()]


def numbers(results: dict[str, Any]) -> dict[str, Any]:
    """Everything but times and origin."""
    return {
        role: {key: value for key, value in found.items() if key != "seconds"}
        for role, found in results.items()
        if role != "provenance"
    }


def test_every_model_gets_the_same_attack(
    pair: dict[str, str], people: UnlearnData, two: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[list[Example]] = []
    original = answer_losses

    def spy(loaded: Loaded, step: dict[str, list[Example]]) -> Any:
        trained.append([*step["attacked"], *step["replay"]])
        return original(loaded, step)

    monkeypatch.setattr(attacking, "answer_losses", spy)
    models = {**pair, "again": pair["vanilla"]}
    results = relearn(models, AttackRequest(people, two, SHORT, SEED), tmp_path / "out")
    draws = {
        role: [(r["attacked"], r["held_out"], r["pictures"]) for r in lines(tmp_path / "out") if r["role"] == role]
        for role in models
    }
    assert draws["vanilla"] == draws["gold"] == draws["again"]
    third = len(trained) // 3
    assert third == 2 * SHORT.steps
    assert trained[:third] == trained[third : 2 * third] == trained[2 * third :]
    first, second = trained[:third], trained[SHORT.steps : third] + trained[: SHORT.steps]
    assert first != second  # control: not all steps are alike
    found = numbers(results)
    assert found["vanilla"] == found["again"]
    other = relearn(pair, AttackRequest(people, two, SHORT, SEED + 1), tmp_path / "other")
    assert [r["pictures"] for r in lines(tmp_path / "other")] != [r["pictures"] for r in lines(tmp_path / "out")][:4]
    assert other["settings"]["seed"] == SEED + 1


def test_relearn_json_has_the_keys_that_scripts_read(
    pair: dict[str, str], people: UnlearnData, two: tuple[str, ...], tmp_path: Path
) -> None:
    results = relearn(pair, AttackRequest(people, two, SHORT, SEED), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "relearn.json").read_text()) == results
    for role in pair:
        for group in ("held_out", "attacked", "retain"):
            for when in ("before", "after", "gain"):
                assert set(results[role][group][when]) == {"value", "low", "high", "n"}
        assert [point["step"] for point in results[role]["curve"]] == [0, 2, 4]
        assert set(results[role]["subjects"]) == set(two)
        assert results[role]["seconds"] > 0
        assert results["provenance"]["models"][role]["sha256"]
    assert results["settings"] == {**dataclasses.asdict(SHORT), "seed": SEED}
    columns, rows = table(results)
    assert [len(row) for row in rows] == [len(columns)] * 2
    with pytest.raises(BadInput, match="choose another role"):
        relearn({"settings": pair["gold"]}, AttackRequest(people, two, SHORT, SEED), tmp_path / "reserved")


def test_a_broken_run_ends_as_a_whole_one(
    pair: dict[str, str], people: UnlearnData, two: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SHORT, splits=2)
    whole = relearn(pair, AttackRequest(people, two, settings, SEED), tmp_path / "whole")
    carried_out: list[str] = []
    original = Attacker.attack

    def breaking(self: Attacker, attack: Attack, label: str) -> Any:
        if len(carried_out) == 5:
            raise KeyboardInterrupt
        carried_out.append(label)
        return original(self, attack, label)

    monkeypatch.setattr(Attacker, "attack", breaking)
    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        relearn(pair, AttackRequest(people, two, settings, SEED), out)
    assert len(lines(out)) == 5
    assert not (out / "relearn.json").exists()
    with (out / "attacks.jsonl").open("a") as file:
        file.write('{"role": "gold", "spl')  # torn off in the middle
    carried_out.clear()
    with pytest.raises(BadInput, match=r"attacks\.jsonl: attacks on other models.*--overwrite"):
        relearn(pair, AttackRequest(people, two, SHORT, SEED), out, resume=True)
    assert not carried_out
    resumed = relearn(pair, AttackRequest(people, two, settings, SEED), out, resume=True)
    assert carried_out == ["attack 2 of 4 on gold", "attack 3 of 4 on gold", "attack 4 of 4 on gold"]
    assert numbers(resumed) == numbers(whole)
    assert [{**r, "seconds": 0} for r in lines(out)] == [{**r, "seconds": 0} for r in lines(tmp_path / "whole")]
    carried_out.clear()
    alone = relearn({"gold": pair["gold"]}, AttackRequest(people, two, settings, SEED), out, resume=True)
    assert not carried_out
    together = relearn({**pair, "other": pair["gold"]}, AttackRequest(people, two, settings, SEED), out, resume=True)
    assert numbers(alone)["gold"] == numbers(whole)["gold"] == numbers(together)["other"]
    assert [label.partition(" on ")[2] for label in carried_out] == ["other"] * 4, "those of the others are kept"
    with pytest.raises(BadInput, match=r"attacks\.jsonl: attacks on other models"):
        relearn({"gold": pair["vanilla"]}, AttackRequest(people, two, settings, SEED), out, resume=True)
    assert whole["vanilla"]["curve"] != whole["gold"]["curve"]  # control: these numbers are not all alike


def test_the_command_leaves_what_it_says(
    pair: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", "people:count=4,seed=5,train=3,validation=2,test=2,strangers=2"
    given = f"attack relearn --model vanilla={pair['vanilla']} --data {data} --out {out}".split()
    small = [word for key in ("splits=1", "steps=2", "replay=2") for word in ("--set", key)]

    def ending(*more: str, forget: str = "first:2") -> int:
        with pytest.raises(SystemExit) as stopped:
            main([*given, "--forget", forget, *more])
        return int(stopped.value.code or 0)

    assert ending("--set", "steps=-1") == 2
    assert "--set steps=-1: expected zero or more" in capsys.readouterr().err
    assert ending("--attacker", "all") == 2
    assert "attacker=all: expected one of full, lora, visual" in capsys.readouterr().err
    assert ending("--attacker", "lora", "--set", "attacker=full") == 2
    assert "--set attacker: given twice" in capsys.readouterr().err
    assert ending(forget="first:1") == 2
    assert "needs at least two" in capsys.readouterr().err
    assert not out.exists()
    assert ending(*small, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "relearn.json").read_text())
    assert ending(*small) == 2
    assert "exists" in capsys.readouterr().err
    assert ending(*small, "--attacker", "visual", "--source", "validation", "--overwrite", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["settings"]["attacker"], told["settings"]["source"]) == ("visual", "validation")
