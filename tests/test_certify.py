"""The certificate of a whole edit: what it says of layers and of visual tokens is so, and it leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from conftest import NewModel
from tiny import TINIES
from torch import Tensor, nn

from unsee.data.examples import UnlearnData
from unsee.editing import certify as certifying
from unsee.editing.certify import certify_edit
from unsee.methods import FeatureStudy
from unsee.methods.parts.features import Pictures
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.packed import NOTHING, Packed
from unsee.subspace.moments import SecondMoment
from unsee.subspace.nullspace import NullSpace, SoftNullSpace, relative_drift

Spaces = Mapping[str, NullSpace | SoftNullSpace | None]
NO_PICTURES = Pictures(NOTHING, NOTHING, torch.empty(0, dtype=torch.long))


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model about to be edited, and the pictures it is judged on."""

    study: FeatureStudy
    unseen: Pictures

    @property
    def edited(self) -> dict[str, nn.Parameter]:
        cut = len(self.study.visual.blocks) - self.study.cut
        return {f"{name}.weight": layer.weight for name, layer in self.study.visual.editable(cut).items()}

    @property
    def before(self) -> dict[str, Tensor]:
        reference = dict(self.study.reference.model.named_parameters())
        return {name: reference[name].detach() for name in self.edited}

    @property
    def inputs(self) -> dict[str, SecondMoment]:
        return self.study.moments([name.removesuffix(".weight") for name in self.edited])

    def spaces(self, rule: str | None, threshold: float = 0.3) -> dict[str, NullSpace | SoftNullSpace | None]:
        return {name: moment.null_space(rule, threshold) if rule else None for name, moment in self.inputs.items()}

    @torch.no_grad()
    def edit(self, size: float, spaces: Spaces) -> None:
        """Random updates of `size` times each weight, brought into its space."""
        torch.manual_seed(3)
        for name, weight in self.edited.items():
            delta, space = torch.randn_like(weight), spaces[name.removesuffix(".weight")]
            if space is not None:
                delta = space.project(delta)
            weight += size * weight.norm() * delta / delta.norm().clamp(min=1e-12)

    def certificate(self, spaces: Spaces, dtype: torch.dtype = torch.float32, **other: Any) -> dict[str, Any]:
        dtypes = dict.fromkeys(self.edited, dtype)
        given: dict[str, Any] = {"study": self.study, "inputs": self.inputs, "unseen": self.unseen} | other
        study, inputs, unseen = given["study"], given["inputs"], given["unseen"]
        return certify_edit(study, self.edited, self.before, inputs, spaces, dtypes, unseen)


NewCase = Callable[..., Case]


@pytest.fixture
def new_case(new_model: NewModel, people: UnlearnData, ragged_people: UnlearnData) -> NewCase:
    """One subject to forget, three to keep; half of the bits of every weight are zero, as if read from bfloat16."""

    def make(family: str = "llava", pictures: str = "square", last_blocks: int = 2) -> Case:
        data = {"square": people, "ragged": ragged_people}[pictures]
        model, processor = new_model(family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        visual, batcher = FAMILIES[family].visual(model.requires_grad_(False)), Batcher(processor, FAMILIES[family])
        forget = data.choose("first:1")
        parts = data.train.of(forget), data.train.without(forget), data.validation.of(forget)
        unseen = FeatureStudy.unseen(visual, batcher, data.validation.without(forget), last_blocks)
        assert unseen is not None
        return Case(FeatureStudy.of(visual, batcher, *parts, last_blocks), unseen)

    return make


EVERY_FAMILY = pytest.mark.parametrize("family", list(TINIES))
ANY_SIZE = pytest.mark.parametrize(
    ("family", "pictures"), [("llava", "square"), ("qwen2_vl", "ragged"), ("qwen2_5_vl", "ragged")]
)


def moved(case: Case, pictures: Pictures) -> float:
    """Relative change of the visual tokens, all pictures at once."""
    with torch.no_grad():
        now = case.study.tail(pictures.hidden).states
    return float((now - pictures.tokens.states).norm() / pictures.tokens.states.norm())


# What it says ---------------------------------------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_that_changes_nothing_drifts_nowhere(new_case: NewCase, family: str, dtype: torch.dtype) -> None:
    case = new_case(family, "ragged")
    spaces = case.spaces("energy")
    for change in (False, True):
        if change:
            case.edit(0.1, spaces)
        found = case.certificate(spaces, dtype)
        said = [found["layers"][name][what] for name in case.edited for what in ("drift", "drift_after_cast", "bound")]
        said += [found["tokens"][who]["first_order"] for who in ("used", "unseen")]
        said += [found["summary"][what]["worst"] for what in ("drift", "bound")]
        measured = [
            found["tokens"][who][what] for who in ("used", "unseen") for what in ("measured", "measured_after_cast")
        ]
        if change:
            assert min(said + measured) > 1e-4, "the control: an edit does"
            assert found["summary"]["parameters_changed"] > 0
        else:
            assert set(said) == {0.0}
            assert max(measured) < 1e-6, "rounding of passes with other neighbours"
            assert found["summary"]["parameters_changed"] == 0


@ANY_SIZE
def test_an_edit_in_its_space_keeps_the_promise_that_a_free_one_breaks(
    new_case: NewCase, family: str, pictures: str
) -> None:
    found = {}
    for rule in ("energy", None):
        case = new_case(family, pictures)
        spaces = case.spaces("energy")
        case.edit(0.2, case.spaces(rule))
        found[rule] = case.certificate(spaces)
    kept, free = (found[rule]["summary"] for rule in ("energy", None))
    assert kept["outside"]["worst"] < 1e-9 < 0.05 < free["outside"]["worst"]
    assert kept["drift"]["mean"] < 0.9 * free["drift"]["mean"]
    for layers in (found["energy"]["layers"], found[None]["layers"]):
        assert all(layer["drift"] <= layer["bound"] for layer in layers.values()), "rounding outside is counted"


@ANY_SIZE
def test_layers_and_tokens_are_those_measured(new_case: NewCase, family: str, pictures: str) -> None:
    case = new_case(family, pictures)
    spaces = case.spaces("energy")
    case.edit(0.1, spaces)
    found = case.certificate(spaces)
    for who, seen in (("used", case.study.retain), ("unseen", case.unseen)):
        tokens = found["tokens"][who]
        assert tokens["measured"] == pytest.approx(moved(case, seen), rel=1e-4)
        assert tokens["measured_after_cast"] == tokens["measured"], "float32 is stored as it is"
        assert tokens["pictures"] == len(seen)
    assert found["tokens"]["used"]["measured"] != pytest.approx(found["tokens"]["unseen"]["measured"], rel=1e-3)
    drifts = []
    for name, weight in case.edited.items():
        moment = case.inputs[name.removesuffix(".weight")]
        drifts.append(relative_drift(weight - case.before[name], case.before[name], moment.mean))
        layer = found["layers"][name]
        assert layer["drift"] == pytest.approx(drifts[-1], rel=1e-4)
        assert (layer["dtype"], layer["tokens"]) == ("float32", moment.tokens)
    summary = found["summary"]
    assert summary["drift"] == {"mean": pytest.approx(sum(drifts) / len(drifts)), "worst": pytest.approx(max(drifts))}
    shares = [layer["free"] for layer in found["layers"].values()]
    assert summary["free"]["mean"] == pytest.approx(sum(shares) / len(shares))
    assert json.loads(json.dumps(found)) == found


@EVERY_FAMILY
def test_the_first_order_is_the_change_of_a_small_edit_and_not_of_a_large_one(new_case: NewCase, family: str) -> None:
    off = {}
    for size in (1e-3, 2.0):
        case = new_case(family, "ragged")
        case.edit(size, case.spaces(None))
        tokens = case.certificate(case.spaces(None))["tokens"]
        off[size] = max(abs(t["first_order"] / t["measured"] - 1) for t in tokens.values())
    assert off[1e-3] < 0.01 < 0.1 < off[2.0]


def test_first_order_effects_of_layers_add_up_with_their_signs(new_case: NewCase) -> None:
    """Two updates that undo each other have no first order together; each layer's own drift does not see that."""
    case = new_case("llava", last_blocks=0)
    first, second = case.edited.values()
    inner = torch.eye(len(first)) * 1e-3
    with torch.no_grad():
        first.copy_(first + inner @ first)
        case.study.visual.model.model.multi_modal_projector.act = nn.Identity()
        case.study.reference.model.model.multi_modal_projector.act = nn.Identity()
        second.copy_(second - second @ inner)
        for visual in (case.study.visual, case.study.reference):
            visual.model.model.multi_modal_projector.linear_1.bias.zero_()
    tokens = dataclasses.replace(case.study.retain, tokens=case.study.reference_tail(case.study.retain.hidden))
    found = case.certificate(case.spaces(None), study=dataclasses.replace(case.study, retain=tokens))
    assert found["tokens"]["used"]["first_order"] < 1e-3 * found["summary"]["drift"]["worst"]
    with torch.no_grad():
        second.copy_(case.before["model.multi_modal_projector.linear_2.weight"])
    found = case.certificate(case.spaces(None), study=dataclasses.replace(case.study, retain=tokens))
    assert found["tokens"]["used"]["first_order"] > 0.1 * found["summary"]["drift"]["worst"]


@ANY_SIZE
def test_the_cast_is_measured_where_there_is_one(new_case: NewCase, family: str, pictures: str) -> None:
    """Rounding is as large as a small edit: tokens after it are not those before it."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        case = new_case(family, pictures)
        case.edit(1e-3, case.spaces(None))
        found[dtype] = case.certificate(case.spaces(None), dtype)
        with torch.no_grad():
            for weight in case.edited.values():
                weight.copy_(weight.to(dtype))
        for who, seen in (("used", case.study.retain), ("unseen", case.unseen)):
            tokens = found[dtype]["tokens"][who]
            assert tokens["measured_after_cast"] == pytest.approx(moved(case, seen), rel=1e-3)
            rounded = abs(tokens["measured_after_cast"] / tokens["measured"] - 1)
            assert rounded == 0 if dtype == torch.float32 else rounded > 0.01
    plain, half = found.values()
    for name, layer in plain["layers"].items():
        assert layer["drift"] == half["layers"][name]["drift"]
        assert layer["drift_after_cast"] == pytest.approx(layer["drift"], rel=1e-3)
    after, exact = ([layer["drift_after_cast"] for layer in each["layers"].values()] for each in (half, plain))
    assert max(abs(a / b - 1) for a, b in zip(after, exact, strict=True)) > 0.05


def test_without_a_space_there_is_no_bound_and_without_pictures_no_tokens(new_case: NewCase) -> None:
    case = new_case()
    case.edit(0.1, case.spaces(None))
    nobody = dataclasses.replace(case.study, retain=NO_PICTURES)
    for rule in (None, "soft"):
        found = case.certificate(case.spaces(rule, 0.5), study=nobody, inputs=case.inputs, unseen=None)
        assert found["tokens"] == {"used": None, "unseen": None}
        assert found["summary"]["outside"] == {"worst": None}
        assert (found["summary"]["bound"]["worst"] is None) == (rule is None)
        assert (found["summary"]["free"]["mean"] == 1) == (rule is None)
        assert found["summary"]["drift"]["worst"] > 0


# How it works ---------------------------------------------------------------------------------------------------------


class Broken(RuntimeError):
    """What the tests below let happen in the middle."""


@pytest.mark.parametrize("breaks", [None, 0, 1, 4, 7], ids=str)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_weights_are_left_bit_for_bit(
    new_case: NewCase, family: str, breaks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = new_case(family)
    case.edit(0.1, case.spaces(None))
    models = (case.study.visual.model, case.study.reference.model)
    weights = [dict(model.named_parameters()) for model in models]
    bits = [{name: weight.detach().clone() for name, weight in own.items()} for own in weights]
    passes, original = 0, certifying.Tail.forward

    def forward(self: Any, hidden: Packed) -> Tensor:
        nonlocal passes
        if passes == breaks:
            raise Broken
        passes += 1
        return original(self, hidden)

    monkeypatch.setattr(certifying.Tail, "forward", forward)
    monkeypatch.setattr(certifying, "POSITIONS", 40)
    if breaks is None:
        case.certificate(case.spaces(None), torch.bfloat16)
    else:
        with pytest.raises(Broken):
            case.certificate(case.spaces(None), torch.bfloat16)
        assert passes == breaks
    for model, own, old in zip(models, weights, bits, strict=True):
        now = dict(model.named_parameters())
        assert all(now[name] is weight for name, weight in own.items())
        assert all(torch.equal(now[name], value) for name, value in old.items())
    name = next(iter(case.edited))
    assert not torch.equal(weights[0][name], weights[0][name].bfloat16().float()), "the control: a cast would show"


def test_a_sample_is_looked_at_a_few_at_a_time(new_case: NewCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case = new_case("qwen2_vl", "ragged")
    case.edit(0.05, case.spaces(None))
    whole = case.certificate(case.spaces(None))["tokens"]
    seen: list[tuple[int, ...]] = []
    original = certifying.Tail.forward

    def forward(self: Any, hidden: Packed) -> Tensor:
        seen.append(hidden.lengths)
        return original(self, hidden)

    monkeypatch.setattr(certifying.Tail, "forward", forward)
    monkeypatch.setattr(certifying, "POSITIONS", 60)
    parts = case.certificate(case.spaces(None))["tokens"]
    assert len(seen) > 6
    assert all(sum(lengths) <= 60 or len(lengths) == 1 for lengths in seen)
    for who, tokens in whole.items():
        assert parts[who] == pytest.approx(tokens, rel=1e-4)
    monkeypatch.setattr(certifying, "SAMPLE", 4)
    sampled = case.certificate(case.spaces(None))["tokens"]
    assert [tokens["pictures"] for tokens in sampled.values()] == [3, 3], "every third of nine, every second of six"
    assert sampled["used"]["measured"] != pytest.approx(whole["used"]["measured"], rel=1e-4)


def test_pictures_too_large_for_plain_attention_are_only_measured(
    new_case: NewCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = new_case("qwen2_vl", "ragged")
    case.edit(0.05, case.spaces(None))
    largest = max(case.study.retain.hidden.lengths)
    monkeypatch.setattr(certifying, "POSITIONS", 1)
    for limit in (largest, largest - 1, 1):
        monkeypatch.setattr(certifying, "LARGEST", limit)
        tokens = case.certificate(case.spaces(None))["tokens"]["used"]
        assert tokens["measured"] > 0
        assert (tokens["first_order"] is None) == (limit == 1)


class Once(Mapping[str, Any]):
    """Values that are made when asked for, as those in a file are; two at a time are one too many."""

    def __init__(self, make: Callable[[str], Any], names: list[str]) -> None:
        self._make, self._names = make, names
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.asked.append(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all at once")

    def __len__(self) -> int:
        return len(self._names)


def test_statistics_are_read_once_and_one_layer_at_a_time(new_case: NewCase) -> None:
    case = new_case()
    case.edit(0.1, case.spaces(None))
    eager = case.certificate(case.spaces("energy"))
    moments, names = case.inputs, list(case.inputs)
    inputs = Once(moments.__getitem__, names)
    spaces = Once(lambda name: moments[name].null_space("energy", 0.3), names)
    assert case.certificate(spaces, inputs=inputs) == eager
    assert inputs.asked == spaces.asked == names


def test_weights_that_are_not_finite_are_for_the_gate_to_refuse(new_case: NewCase) -> None:
    case = new_case()
    with torch.no_grad():
        [*case.edited.values()][-1][0, 0] = math.nan
    found = case.certificate(case.spaces("energy"), torch.float16)
    assert math.isnan(found["tokens"]["used"]["measured"])
    drifts = [layer["drift"] for layer in found["layers"].values()]
    assert [math.isnan(drift) for drift in drifts] == [False] * (len(drifts) - 1) + [True]
