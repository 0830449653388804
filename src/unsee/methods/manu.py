"""Modality-aware neuron unlearning (MANU): prune neurons by which forget data tell pictures from text, retained do not.

Published (arXiv 2502.15910), as restated in Open-MMUnlearning (arXiv 2610.10358, eqs. 36-37): activations a of MLP
layers in the last vision and language layers are collected with and without pictures, on forget and on retained data;
with Z = mean |a|, N = share of |a| > threshold, V = variance and R = root mean square of a,

    I_1 = |Z_multi - Z_text| / (Z_multi + Z_text + epsilon)     I_2, I_4: likewise of N and of R
    I_3 = sqrt(V_multi + V_text)
    score = sum_k w_k I_k(forget) / (sum_k w_k I_k(retain) + epsilon)

and the share of neurons with the highest scores, all layers in one ranking, is set to zero. Nothing is trained.

Ours, see docs/methods/manu.md: R's contrast in the form of Z's, weights w_k, the text side: the same questions without
their pictures; a neuron is one hidden unit of an MLP with everything that leads into and out of it, a is what it gives
to the next layer, at every position that is no padding, and statistics are taken over positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unsee.data.examples import Split
from unsee.errors import BadInput
from unsee.methods.parts.base import DirectOutputMethod, count, positive
from unsee.models.loading import Loaded
from unsee.progress import track

EPSILON = 1e-5  # as published


@dataclass(frozen=True)
class ModalityAwareNeuronUnlearning(DirectOutputMethod):
    """MANU. No seed and no order of the data changes the result.

    Attributes:
        vision_layers: vision blocks whose neurons may be pruned, counted back from the feature layer: one behind it
            gives nothing to any answer.
        language_layers: language layers, counted back from the last one.
        share: of all these neurons, how many are pruned; rounded down.
        mean, frequency, deviation, root_mean_square: weights w_k of the four importances, I_1 to I_4.
        threshold: above which |a| counts as active.
        batch: questions per forward pass; has no effect on the result but rounding.
    """

    name: ClassVar[str] = "manu"
    paper: ClassVar[str] = "MANU (arXiv 2502.15910, as in 2610.10358); text side, neurons and positions are our reading"

    vision_layers: int = count(3)
    language_layers: int = count(3)
    share: float = field(default=0.3, metadata={"above": 0, "high": 1})
    mean: float = 1.0
    frequency: float = 1.0
    deviation: float = 1.0
    root_mean_square: float = 1.0
    threshold: float = positive(0.1)
    batch: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vision_layers + self.language_layers:
            raise ValueError("language_layers=0: with vision_layers=0 there is no neuron to prune; raise one of them")
        if not any(self.weights):
            raise ValueError("mean=0: all four weights are 0, so no neuron is before another; raise one of them")

    @property
    def language_model(self) -> Literal["not loaded", "read", "changed"]:
        return "changed" if self.language_layers else "read"

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """w_k, in the order of `importances`."""
        return self.mean, self.frequency, self.deviation, self.root_mean_square

    def mlps(self, student: Loaded) -> list[Mlp]:
        """Those whose neurons may be pruned: of the vision tower, then of the language model.

        Raises:
            BadInput: the model has fewer layers, or one holds no MLP of a known form.
        """
        names = {module: name for name, module in student.model.named_modules()}
        layers: list[nn.Module] = list(student.family.language_model(student.model).layers)  # type: ignore[arg-type]
        places = (
            ("vision_layers", self.vision_layers, list(student.visual.blocks)),
            ("language_layers", self.language_layers, layers),
        )
        found = []
        for setting, wanted, there in places:
            if wanted > len(there):
                raise BadInput(f"{setting}={wanted}: this model has {len(there)}; take at most as many")
            last = there[len(there) - wanted :]
            found += [Mlp.of(layer, names[layer], setting == "language_layers") for layer in last]
        return found

    @torch.no_grad()
    def solve(self, student: Loaded, forget: Split, retain: Split) -> dict[str, Tensor]:
        mlps = self.mlps(student)
        sides = [self.importances(student, mlps, split) for split in (forget.pictured, retain.pictured)]
        scores = [self.score(*pair) for pair in zip(*sides, strict=True)]
        deltas: dict[str, Tensor] = {}
        for mlp, neurons in zip(mlps, self.chosen(scores), strict=True):
            if len(neurons):
                deltas |= mlp.without(neurons)
        return deltas

    def importances(self, student: Loaded, mlps: Sequence[Mlp], questions: Split) -> list[Tensor]:
        """Of the neurons of each MLP [4, neurons], on questions about pictures, shown and left out."""
        sides = [self.activities(student, mlps, some) for some in (questions, unseen(questions))]
        return [importances(*pair) for pair in zip(*sides, strict=True)]

    @torch.no_grad()
    def activities(self, student: Loaded, mlps: Sequence[Mlp], questions: Split) -> list[Activity]:
        """What the neurons of each MLP do on questions with their true answers; nothing where no picture is seen."""
        student.model.eval()
        activities = [Activity(mlp.neurons, self.threshold) for mlp in mlps]
        with watching(mlps) as latest:
            for start in track(range(0, len(questions), self.batch), "activity of neurons"):
                batch = student.batcher.for_training(questions.examples[start : start + self.batch])
                latest.clear()
                student.model.model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
                for mlp, activity in zip(mlps, activities, strict=True):
                    if mlp in latest:
                        real = batch["attention_mask"].bool() if mlp.language else ...
                        activity.add(latest[mlp][real].flatten(0, -2))
        return activities

    def score(self, forget: Tensor, retain: Tensor) -> Tensor:
        """Of each neuron of one MLP [neurons], from its importances [4, neurons] on either side."""
        weights = torch.tensor(self.weights, dtype=forget.dtype)
        return weights @ forget / (weights @ retain + EPSILON)

    def chosen(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """The neurons to prune: their indices in each MLP. Of equal scores the first ones are taken.

        Raises:
            BadInput: `share` asks for less than one neuron.
        """
        together = torch.cat(list(scores))
        pruned = int(self.share * len(together) + 1e-9)  # 0.29 * 100 is 28.999...
        if not pruned:
            raise BadInput(f"share={self.share}: prunes none of {len(together)} neurons; raise it, or take more layers")
        best = torch.zeros(len(together), dtype=torch.bool)
        best[together.argsort(descending=True, stable=True)[:pruned]] = True
        return [part.nonzero()[:, 0] for part in best.split([len(part) for part in scores])]


@dataclass(frozen=True, eq=False)
class Mlp:
    """One MLP: y = W_out a + b_out with a = f(W_in x + b_in), or gated, a = f(W_gate x + b_gate) * (W_up x + b_up).

    Neuron i is everything that only a_i depends on and everything that only depends on it: row i of what leads in, with
    its biases, and column i of W_out. b_out belongs to no neuron.

    Attributes:
        inputs: `fc1`, or `gate_proj` and `up_proj`, by full name.
        output: `fc2`, or `down_proj`, likewise.
        language: of the language model, whose positions may be padding.
    """

    inputs: dict[str, nn.Linear]
    output: tuple[str, nn.Linear]
    language: bool

    @staticmethod
    def of(layer: nn.Module, name: str, language: bool) -> Mlp:
        """That of a transformer layer of this full name.

        Raises:
            BadInput: it has none, or one of another form: a name that matches nothing would prune nothing.
        """
        parts = {part: m for part, m in layer.named_modules() if isinstance(m, nn.Linear) and part.startswith("mlp.")}
        for *inputs, output in (("mlp.fc1", "mlp.fc2"), ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")):
            if parts.keys() == {*inputs, output}:
                into = {f"{name}.{part}": parts[part] for part in inputs}
                return Mlp(into, (f"{name}.{output}", parts[output]), language)
        raise BadInput(
            f"layer '{name}': expected an MLP of fc1 and fc2, or of gate_proj, up_proj and down_proj, found "
            f"{', '.join(sorted(parts)) or 'none'}; manu does not know this architecture: use another method"
        )

    @property
    def neurons(self) -> int:
        return self.output[1].in_features

    def without(self, neurons: Tensor) -> dict[str, Tensor]:
        """What to add to its parameters, by full name, so that everything of these neurons becomes exactly zero."""
        neurons, deltas = neurons.to(self.output[1].weight.device), {}
        for name, layer in self.inputs.items():
            for kind, parameter in layer.named_parameters():
                deltas[f"{name}.{kind}"] = torch.zeros_like(parameter).index_copy_(0, neurons, -parameter[neurons])
        name, layer = self.output
        weight = layer.get_parameter("weight")
        deltas[f"{name}.weight"] = torch.zeros_like(weight).index_copy_(1, neurons, -weight[:, neurons])
        return deltas


class Activity:
    """Sums over positions of what each neuron of one MLP gave, in float64."""

    def __init__(self, neurons: int, threshold: float) -> None:
        self.threshold, self.positions = threshold, 0
        self._sums = torch.zeros(4, neurons, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Of further positions [positions, neurons]."""
        values = values.double()
        size = values.abs()
        self.positions += len(values)
        for total, part in zip(self._sums, (size, size > self.threshold, values, values.square()), strict=True):
            total += part.sum(0).cpu()

    def statistics(self) -> Tensor:
        """Mean |a|, share of |a| above the threshold, variance and root mean square [4, neurons]; of nothing, zero."""
        size, active, value, square = self._sums / max(self.positions, 1)
        return torch.stack([size, active, (square - value.square()).clamp(min=0), square.sqrt()])


def importances(pictured: Activity, text: Activity) -> Tensor:
    """How neurons tell pictures from text, by mean |a|, frequency and root mean square, and how they vary [4, neurons].

    The third is a size of activations, the others are shares from 0 to 1: 0 is a neuron that does the same with and
    without a picture, 1 one that is silent on one side (every neuron of the vision tower).
    """
    multi, alone = pictured.statistics(), text.statistics()
    contrast = (multi - alone).abs() / (multi + alone + EPSILON)
    return torch.stack([contrast[0], contrast[1], (multi[2] + alone[2]).sqrt(), contrast[3]])


def unseen(questions: Split) -> Split:
    """The same questions and answers without their pictures, each of a subject once."""
    return Split(tuple(dict.fromkeys(dataclasses.replace(e, image=None, others=()) for e in questions)))


@contextmanager
def watching(mlps: Sequence[Mlp]) -> Iterator[dict[Mlp, Tensor]]:
    """What the neurons of each MLP gave in the latest forward pass [..., neurons]; the hooks are gone afterwards."""
    latest: dict[Mlp, Tensor] = {}

    def watch(mlp: Mlp) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            latest[mlp] = inputs[0]

        stack.callback(mlp.output[1].register_forward_pre_hook(hook).remove)

    with ExitStack() as stack:
        for mlp in mlps:
            watch(mlp)
        yield latest
