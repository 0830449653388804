"""unsee from Python: the runs of the command line, with models and data in memory as well as by their paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_type_hints

import torch
from transformers import PreTrainedModel, ProcessorMixin

from unsee.checkpoint.folder import CheckpointFolder
from unsee.data import sources
from unsee.data.examples import UnlearnData
from unsee.device import on_device
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn as carry_out
from unsee.errors import BadInput
from unsee.evaluation.evaluate import EvaluationRequest
from unsee.evaluation.evaluate import evaluate as ask
from unsee.evaluation.results import check_role
from unsee.methods import Method
from unsee.models.matching import key_of_parameter
from unsee.output import check_output, output_of_command
from unsee.settings import named_method
from unsee.storage import no_room, scratch_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

Place = str | Path


class EditOptions(TypedDict, total=False):
    """What `unlearn` takes by name; each is explained in `EditRequest`, `device` in `unsee.device`.

    Attributes:
        seed: 10 without another.
        moments: from `unsee moments fit`.
        gate: True without another.
        retain_free, remember, link: False without another.
        first: the model before the first of a line of edits.
        device: `cpu` without another; `auto` takes a GPU if there is one.
        overwrite: replace an `out` that unsee wrote.
    """

    seed: int
    moments: Place | None
    gate: bool
    retain_free: bool
    remember: bool
    first: Place | None
    link: bool
    device: str
    overwrite: bool


class EvaluationOptions(TypedDict, total=False):
    """What `evaluate` takes by name.

    Attributes:
        seed: decides `random:N`; 10 without another.
        jobs: models that are asked side by side.
        gradients, reference: further attacks of membership inference.
        device: as for `unlearn`.
        overwrite: replace results that unsee wrote.
        resume: go on with a broken run in `out`.
    """

    seed: int
    jobs: int
    gradients: bool
    reference: Place | None
    device: str
    overwrite: bool
    resume: bool


@dataclass(frozen=True)
class Unlearned:
    """What an edit left.

    Attributes:
        manifest: how it was made, as `unsee.json` has it: settings, seeds, hashes, certificate, warnings.
        path: the edited checkpoint; None if no `out` was given.
        model: the model that was given in memory, edited; None if it was given by its path.
    """

    manifest: dict[str, Any]
    path: Path | None
    model: PreTrainedModel | None


def load_data(source: Place) -> UnlearnData:
    """Pictures and questions, in three splits that share no picture.

    Args:
        source: a folder with one folder of pictures per subject, a table, a benchmark such as `mllmu:PATH`, or `people`
            for generated ones: whatever DATA is on the command line.

    Raises:
        BadInput: no such data, or data that cannot be used; names the file, row or key, and how to fix it.
    """
    with _arguments_named():
        return sources.load_data(_place(source, "source"))


def unlearn(
    model: Place | PreTrainedModel,
    data: Place | UnlearnData,
    forget: str | Sequence[str],
    *,
    method: str | Method = "nscvf",
    out: Place | None = None,
    processor: ProcessorMixin | None = None,
    **options: Unpack[EditOptions],
) -> Unlearned:
    """Make a model forget what these subjects look like; their names and facts in text stay.

    Args:
        model: a checkpoint folder, a hub id, or a model in memory. One in memory is edited in place, in its own dtype,
            after all gates have passed; it is saved to a temporary folder meanwhile, so the edit sees what a file
            would hold, and needs room there for the model twice.
        data: as for `load_data`, or what that returned.
        forget: subjects, each by the name of its folder or its own; or `first:N`, `random:N`, `@FILE`.
        method: a name in `METHODS`, or an instance: one of those with settings (`METHODS["nscvf"](steps=20)`), or of a
            class of your own.
        out: where the edited checkpoint goes. Needed where `model` is not in memory.
        processor: of a model in memory.

    Raises:
        BadInput: an argument that cannot be used; names it, what was expected and how to fix it. Nothing is changed.
        GateFailed: the edit would have done too much damage. Nothing is changed.
    """
    with _arguments_named(), output_of_command(), ExitStack() as run:
        rest = _checked(EditOptions, options)
        overwrite = rest.pop("overwrite", False)
        run.enter_context(on_device(rest.pop("device", "cpu")))
        scratch = run.enter_context(scratch_folder())
        if rest.get("moments") is not None:
            rest["moments"] = Path(_at_home(rest["moments"], "moments"))
        if rest.get("first") is not None:
            rest["first"] = _at_home(rest["first"], "first")
        out = None if out is None else Path(_at_home(out, "out"))
        in_memory = isinstance(model, PreTrainedModel)
        if out is None and not in_memory:
            raise BadInput("--out: missing; say where the edited copy goes, or give a model in memory")
        inputs = [_at_home(data, "data")] if not isinstance(data, UnlearnData) else []
        inputs += [_at_home(model, "model")] if not isinstance(model, PreTrainedModel) else []
        if out is not None:
            check_output(out, overwrite, kind="checkpoint", inputs=[*inputs, rest.get("moments"), rest.get("first")])
        loaded = _loaded(data)
        chosen = _method(method)
        subjects = loaded.choose(forget, rest.get("seed", 10), all_may_go=rest.get("retain_free", False))
        request = EditRequest(loaded, subjects, chosen, about={"in_memory": in_memory}, **rest)
        target = out if out is not None else scratch / "after"
        source = _saved(model, processor, scratch / "before") if isinstance(model, PreTrainedModel) else inputs[-1]
        manifest = carry_out(source, request, target)
        if isinstance(model, PreTrainedModel):
            _take_over(model, CheckpointFolder(target), manifest["changed"])
            if processor is not None:
                processor.chat_template = type(processor).from_pretrained(target).chat_template
        held = model if isinstance(model, PreTrainedModel) else None
        return Unlearned(manifest, out, held)


def evaluate(
    models: Mapping[str, Place | PreTrainedModel],
    data: Place | UnlearnData,
    forget: str | Sequence[str],
    *,
    out: Place | None = None,
    processor: ProcessorMixin | None = None,
    **options: Unpack[EvaluationOptions],
) -> dict[str, Any]:
    """Ask models the same questions and score them side by side.

    Args:
        models: role (`vanilla`, `gold`, `unlearned`, or any name) -> a checkpoint folder, a hub id, or a model in
            memory. One in memory is saved to a temporary folder: answers come from what a file would hold.
        data, forget: as for `unlearn`.
        out: where predictions, scores and measures go, for `report` and `verdict`; without it they are not kept.
        processor: of the models in memory.

    Returns:
        what `results.json` holds, by role: `results["unlearned"]["forget"]["test"]` is `{"value", "low", "high", "n"}`,
        in fractions from 0 to 1.

    Raises:
        BadInput: an argument that cannot be used; names it, what was expected and how to fix it.
    """
    with _arguments_named(), output_of_command(), ExitStack() as run:
        rest = _checked(EvaluationOptions, options)
        overwrite, seed = rest.pop("overwrite", False), rest.pop("seed", 10)
        run.enter_context(on_device(rest.pop("device", "cpu")))
        scratch = run.enter_context(scratch_folder())
        if rest.get("reference") is not None:
            rest["reference"] = _at_home(rest["reference"], "reference")
        if not isinstance(models, Mapping) or not models:
            raise BadInput(f"models: {_kind(models)}; expected a role for each model, e.g. {{'vanilla': PATH}}")
        for role in models:
            check_role(role, "models")
        on_disk = {
            r: _at_home(one, f"models[{r!r}]") for r, one in models.items() if not isinstance(one, PreTrainedModel)
        }
        out = None if out is None else Path(_at_home(out, "out"))
        if out is not None:
            inputs = [] if isinstance(data, UnlearnData) else [_at_home(data, "data")]
            inputs += [*on_disk.values(), *([rest["reference"]] if rest.get("reference") else [])]
            check_output(out, overwrite, rest.get("resume", False), inputs=inputs)
        loaded = _loaded(data)
        subjects = loaded.choose(forget, seed)
        paths = {
            role: _saved(one, processor, scratch / role) if isinstance(one, PreTrainedModel) else on_disk[role]
            for role, one in models.items()
        }
        request = EvaluationRequest(paths, loaded, subjects, rest.pop("gradients", False), rest.pop("reference", None))
        return ask(request, out if out is not None else scratch / "results", **rest).to_json()


def verdict(results: Place, role: str = "unlearned", *, settings: Place | None = None) -> dict[str, Any]:
    """Whether a model is like gold: PASS, FAIL or INCONCLUSIVE, with a sentence for each criterion.

    Args:
        results: the folder that `evaluate` wrote, with a vanilla and a gold model beside the one that is judged.
        role: of the model that is judged.
        settings: a TOML file that stood before the model was made, e.g. `verdict.toml` of `unsee study audit`.

    Returns:
        `verdict`, `criteria` and the SHA-256 of the settings, as `unsee verdict --json` prints them.

    Raises:
        BadInput: no such results or role, or no gold or vanilla model among them.
    """
    from unsee.evaluation.results import read_measures
    from unsee.evaluation.verdict import VerdictSettings, read_settings
    from unsee.evaluation.verdict import verdict as judge

    with _arguments_named():
        chosen = read_settings(Path(_at_home(settings, "settings"))) if settings is not None else VerdictSettings()
        file = Path(_at_home(results, "results")) / "measures.json"
        return judge(read_measures(file, str(file)).models, role, chosen)


def report(results: Place) -> Path:
    """Write `report.html`, one self-contained page, into the folder that `evaluate` wrote; returns its path.

    Raises:
        BadInput: a folder without results, or results that cannot be read.
    """
    from unsee.reporting import write_report

    with _arguments_named():
        return write_report(Path(_at_home(results, "results")))


def _at_home(place: Any, argument: str) -> str:
    """A path with `~` for the home folder; a hub id as it is."""
    return os.path.expanduser(_place(place, argument))


def _place(place: Any, argument: str) -> str:
    if not isinstance(place, (str, Path)):
        memory = {"data": " or what load_data returned", "model": " or a transformers model"}.get(argument, "")
        raise BadInput(f"{argument}: {_kind(place)}; expected a text or a Path{memory}")
    return str(place)


def _kind(given: Any) -> str:
    """What was given, for messages; never its content, which may be long."""
    if given is None or given in ({}, [], ()):
        return repr(given)
    return f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"


LEAST = {"seed": 0, "jobs": 1}


def _checked(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as one of the classes above has them.

    Raises:
        BadInput: one that it has not, or a value of another type.
    """
    known = get_type_hints(kind)
    for key, value in given.items():
        if key not in known:
            raise BadInput(f"{key}: no such option; expected one of {', '.join(known)}")
        if known[key] is bool:
            fits, expected = isinstance(value, bool), "True or False"
        elif known[key] is int:
            fits = isinstance(value, int) and not isinstance(value, bool) and LEAST[key] <= value < 2**32
            expected = f"a whole number, {LEAST[key]} or more"
        elif known[key] is str:
            fits, expected = isinstance(value, str), "a text"
        else:
            fits, expected = value is None or isinstance(value, (str, Path)), "a text or a Path"
        if not fits:
            raise BadInput(f"{key}={value!r}: expected {expected}")
    return dict(given)


def _method(method: Any) -> Method:
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise BadInput(f"method: {_kind(method)}; expected a name, or an instance such as METHODS['nscvf']()")
    return named_method(method, {})


def _loaded(data: Place | UnlearnData) -> UnlearnData:
    return data if isinstance(data, UnlearnData) else sources.load_data(_place(data, "data"))


def _saved(model: PreTrainedModel, processor: ProcessorMixin | None, folder: Path) -> str:
    """A model in memory as a checkpoint folder."""
    if not isinstance(processor, ProcessorMixin):
        given = "missing" if processor is None else _kind(processor)
        raise BadInput(f"processor: {given}; a model in memory needs the one it was loaded with")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def _take_over(model: PreTrainedModel, edited: CheckpointFolder, changed: Sequence[str]) -> None:
    """Put changed tensors of a checkpoint into the model that it was saved from."""
    name_of = {key: name for name, key in key_of_parameter(model, edited).items()}
    own = dict(model.named_parameters())
    for key, tensor in edited.read(changed):
        own[name_of[key]].copy_(tensor)


# Messages -------------------------------------------------------------------------------------------------------------

AS_ARGUMENT = {"no-gate": "gate=False", "overwrite": "overwrite=True", "resume": "resume=True", "set": "settings"}


@contextmanager
def _arguments_named() -> Iterator[None]:
    """Whoever calls a function gave arguments, not flags: `--data gone: no such data` is said of `data`."""
    try:
        yield
    except BadInput as error:
        raise BadInput(in_python(str(error))) from error
    except OSError as error:
        if (full := no_room(error)) is None:
            raise
        raise full from error


def in_python(message: str) -> str:
    """A message with arguments for flags; commands in `backticks` stay as they are."""
    parts = message.split("`")
    parts[::2] = [
        re.sub(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)", lambda f: AS_ARGUMENT.get(f[1], f[1].replace("-", "_")), part)
        for part in parts[::2]
    ]
    return "`".join(parts)
