"""Open a checkpoint from a local folder or a hub id: the whole model, or its visual module alone."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from unsee.checkpoint.folder import CheckpointFolder
from unsee.device import chosen_device
from unsee.errors import BadInput, GateFailed
from unsee.models.anatomy import Family, VisualModule
from unsee.models.batching import Batcher
from unsee.models.families import family_of
from unsee.models.foreign import TELLING, file_of_pictures, lost_files, quantised, refuse_foreign, refuse_wrapped
from unsee.models.matching import Report, key_of_parameter, on_meta, tied_pairs, untied

AGAIN = "save or download it again"
IN_FULL = "take the checkpoint in full precision that it was made from"


@dataclass(frozen=True)
class Loaded:
    """A model with everything needed to ask it questions.

    Attributes:
        model: the transformers model; after `load_visual` its language model is on the meta device.
        batcher: examples -> tensors for this model.
        family: its architecture.
        folder: where its weights stand.
        report: what transformers said of the folder.
    """

    model: PreTrainedModel
    batcher: Batcher
    family: Family
    folder: CheckpointFolder
    report: Report = field(default_factory=Report)

    @cached_property
    def visual(self) -> VisualModule:
        with _reading(self.folder):
            return self.family.visual(self.model)

    def checkpoint_keys(self, names: Mapping[str, object]) -> dict[str, str]:
        """Parameter names of the model -> tensor names in its checkpoint (transformers renames while loading).

        Raises:
            BadInput: the checkpoint stores a parameter in another form (merged or split), or as two that the
                configuration calls one, so it cannot be edited.
        """
        keys = self._keys
        lost = [name for name in names if name not in keys]
        if lost:
            raise BadInput(f"{self.folder.path}: no tensor for parameter '{lost[0]}'; it cannot be edited in place")
        self._copies(names)
        return {name: keys[name] for name in names}

    @cached_property
    def account(self) -> dict[str, frozenset[str]]:
        """What the folder opens with: `report`, and the parameters that are `untied`."""
        return {**dataclasses.asdict(self.report), "untied": untied(self._tied, self._keys, self.folder)}

    def stored(self, edited: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Edited parameters by name -> what is to be written, by tensor name; tied ones that are stored twice, twice.

        Raises:
            BadInput: see `checkpoint_keys`.
        """
        keys, copies = self.checkpoint_keys(edited), self._copies(edited)
        return {key: tensor for name, tensor in edited.items() for key in (keys[name], *copies.get(name, ()))}

    @cached_property
    def _tied(self) -> list[tuple[str, str]]:
        return tied_pairs(self.model)

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Also of a parameter that is stored under the name of one it is tied with."""
        keys = key_of_parameter(self.model, self.folder)
        for one, other in self._tied:
            if (one in keys) != (other in keys):
                keys[one] = keys[other] = keys[one if one in keys else other]
        return keys

    def _copies(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Parameters that are stored more than once -> the other tensors.

        Raises:
            BadInput: not all hold the same values in the same precision.
        """
        found: dict[str, list[str]] = {}
        wanted = frozenset(names)
        for name, other in (pair for tied in self._tied for pair in (tied, tied[::-1])):
            if name not in wanted or self._keys[other] == self._keys[name]:
                continue
            keys = self._keys[name], self._keys[other]
            one_value = self.model.get_parameter(name) is self.model.get_parameter(other)
            if not one_value or len(set(self.folder.dtypes(keys).values())) > 1:
                raise BadInput(
                    f"{self.folder.path}: config.json ties '{min(keys)}' and '{max(keys)}', but they are stored with "
                    "other values or precisions; set each tie_word_embeddings to false if both are meant, or delete one"
                )
            found.setdefault(name, []).append(keys[1])
        return found


def locate(path_or_id: str) -> Path:
    """A local checkpoint folder as it is, or the local snapshot of a hub id (downloaded if needed).

    A hub id's configuration is read before its weights are fetched.

    Raises:
        BadInput: neither exists, or what is there can be no checkpoint of a family, see `refuse_foreign`.
    """
    path = Path(os.path.expanduser(path_or_id))
    if path.is_dir():
        refuse_foreign(path)
        return path
    if path.exists() or path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise BadInput(f"--model {path_or_id}: no such folder; expected a checkpoint folder or a hub id 'owner/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetched(*files: str) -> Path:
        try:
            return Path(snapshot_download(path_or_id, allow_patterns=list(files)))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = _first_line(error)
            raise BadInput(f"--model {path_or_id}: no such folder, and the hub did not give it ({reason})") from error

    refuse_foreign(fetched(*TELLING), complete=False)
    found = fetched("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md")
    refuse_foreign(found)
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):
        return " ".join([type(error).__name__, *lines])
    return " ".join(lines) if lines[0].endswith(":") else lines[0]


def _install(error: ImportError) -> str:
    """The command that installs what an error says is missing; its own first line if it names none."""
    if said := re.search(r"pip install [^`()]+", str(error)):
        return shlex.join(shlex.split(said[0].rstrip(". \n")))
    return f"pip install {error.name}" if error.name else _first_line(error)


@contextmanager
def _reading(folder: CheckpointFolder, file: str = "", problem: str = "", fix: str = AGAIN) -> Iterator[None]:
    """Whatever is wrong with a checkpoint's files becomes one line that names the folder, and with `file` the file."""
    try:
        yield
    except BadInput as error:  # of a family, which knows the name of the file only
        raise BadInput(f"{folder.path}/{error}") from error
    except Exception as error:  # of transformers, its validators, tokenizers, json, ...: whatever is damaged
        if not problem:
            raise
        if isinstance(error, ImportError):
            needed = f"{problem}, a package is missing; install it: {_install(error)}"
            raise BadInput(f"{folder.path / file}: {needed}") from error
        raise BadInput(f"{folder.path / file}: {problem} ({_first_line(error)}); {fix}") from error


def open_checkpoint(path_or_id: str) -> tuple[CheckpointFolder, PretrainedConfig, Family]:
    """Everything about a checkpoint but its weights.

    Raises:
        BadInput: see `locate`; or a configuration that cannot be read, or tensors under the names of a wrapper.
    """
    folder = CheckpointFolder(locate(path_or_id))
    refuse_wrapped(folder.path, folder.file_of)
    with _reading(folder, "config.json", "not a usable configuration"):
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
        return folder, config, family_of(config.model_type)


def open_model(path_or_id: str, dtype: torch.dtype | None = None, device: str | None = None) -> Loaded:
    """A model without its weights, which are read by `with_weights`; it stands on the meta device.

    Args:
        dtype: in which its weights will be asked for; None: as they are stored.
        device: where it is to be put; None: where the command was told to, see `unsee.device`.

    Raises:
        BadInput: see `open_checkpoint` and `key_of_parameter`; or the weights lack a tensor or have another shape than
            the configuration; or processor and model do not agree (see `Family.fit`, and the token that stands for a
            picture); or a dtype is asked of quantised weights, which have none to be edited in.
    """
    folder, config, family = open_checkpoint(path_or_id)
    how = quantised(config)
    if how and dtype is not None:
        raise BadInput(
            f"{folder.path / 'config.json'}: its weights are quantised ({how}), to be asked and not trained; {IN_FULL}"
        )
    batcher = _batcher(folder, config, family, device)
    expected, known = config.image_token_id, batcher.tokenizer.convert_tokens_to_ids(family.image_placeholder)
    if known != expected:
        raise BadInput(
            f"{folder.path / 'config.json'}: the image token is {expected}, but its tokenizer has "
            f"'{family.image_placeholder}' as {known}; correct one of them"
        )
    with _reading(folder, **_damage(how)):
        empty, report = on_meta(folder, config)
    key_of_parameter(empty, folder)
    if not how:  # else what unpacks them tells what fits
        _check_fit(report.missing | report.mismatched, folder, report)
    return Loaded(empty, batcher, family, folder, report)


def with_weights(opened: Loaded, dtype: torch.dtype | None = None) -> Loaded:
    """The whole model in evaluation mode, in its stored dtype unless another is given.

    Raises:
        BadInput: the weights do not load.
    """
    folder, batcher, report = opened.folder, opened.batcher, opened.report
    how = quantised(opened.model.config)
    with _reading(folder, **_damage(how)):
        found: Any = AutoModelForImageTextToText.from_pretrained(
            folder.path,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            device_map={"": batcher.device} if how else None,  # such a model cannot always be moved
        )
    model, said = found
    _check_fit({*said["missing_keys"], *(name for name, *_ in said["mismatched_keys"])}, folder, report)
    return Loaded(model.eval() if how else model.eval().to(batcher.device), batcher, opened.family, folder, report)


def load_model(path_or_id: str, dtype: torch.dtype | None = None, device: str | None = None) -> Loaded:
    """See `open_model` and `with_weights`."""
    return with_weights(open_model(path_or_id, dtype, device), dtype)


def _damage(how: str) -> dict[str, str]:
    """What is said of weights that do not load."""
    return {"problem": f"does not load, quantised ({how})", "fix": IN_FULL} if how else {"problem": "does not load"}


def load_visual(path_or_id: str, device: str | None = None) -> Loaded:
    """Vision tower and projector in float32; nothing of the language model is read from disk or allocated.

    Args:
        device: see `load_model`.

    Raises:
        BadInput: see `open_checkpoint` and `key_of_parameter`; or a weight that is missing or of another shape than the
            configuration has it, or a visual one that is not stored as a float.
    """
    folder, config, family = open_checkpoint(path_or_id)
    how = quantised(config)
    batcher = _batcher(folder, config, family, device)
    with _reading(folder, "config.json", "not a usable configuration"), no_init_weights():
        parts = family.build_visual(config)
    with _reading(folder, problem="does not load"):
        model, report = on_meta(folder, config)
    for path, module in parts.items():
        model.set_submodule(path, module.float().to(batcher.device))
    keys = key_of_parameter(model, folder)
    roots = tuple(path + "." for path in parts)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(roots)}
    lost = [name for name in wanted if name not in keys]
    if lost:
        asked = f"its vision tower is quantised ({how}); {IN_FULL}" if how else f"is this a {family.name} checkpoint?"
        raise BadInput(f"{folder.path}: its weights hold nothing for '{lost[0]}'{_unknown(report)}; {asked}")
    if not how:
        _check_fit({name for name in report.missing | report.mismatched if not name.startswith(roots)}, folder, report)
    name_of = {keys[name]: name for name in wanted}
    try:
        folder.dtypes(key for key, name in name_of.items() if wanted[name].is_floating_point())
    except BadInput as error:
        raise BadInput(f"{error}; {IN_FULL}") from error
    for key, tensor in folder.read(name_of):
        _fill(wanted[name_of[key]], tensor, key, folder)
    return Loaded(model.eval(), batcher, family, folder, report)


def _check_fit(unfit: Collection[str], folder: CheckpointFolder, report: Report) -> None:
    if unfit:
        raise BadInput(
            f"{folder.path}: its weights hold nothing that fits '{min(unfit)}' as config.json has it"
            f"{_unknown(report)}; save it again"
        )


def _unknown(report: Report) -> str:
    """What to say of stored tensors that are no parameter: they may be the missing ones, under another prefix."""
    if not report.unexpected:
        return ""
    first = min(report.unexpected)
    return f", but tensors that it does not know, the first with the prefix '{first.partition('.')[0]}.' ('{first}')"


def _fill(parameter: Tensor, stored: Tensor, key: str, folder: CheckpointFolder) -> None:
    if parameter.shape != stored.shape:
        raise BadInput(
            f"{folder.path}: tensor '{key}' has shape {list(stored.shape)}, config.json asks {list(parameter.shape)}; "
            "save it again, or correct config.json"
        )
    with torch.no_grad():
        parameter.copy_(stored)


def _batcher(folder: CheckpointFolder, config: PretrainedConfig, family: Family, device: str | None) -> Batcher:
    if lost := lost_files(folder.path):  # transformers would make an empty tokenizer of some of them
        raise BadInput(
            f"{folder.path}: its processor does not load, it lacks {' and '.join(lost)}; copy what is missing from the "
            "base, the model it was made from"
        )
    with _reading(folder, problem="its processor does not load"):
        processor = family.processor_class.from_pretrained(folder.path, trust_remote_code=False)
    made = getattr(getattr(processor, "image_processor", None), "model_input_names", ())
    if wrong := [name for name in family.image_inputs if name not in made]:
        raise BadInput(
            f"{folder.path}: its processor makes no {wrong[0]} of pictures, which {family.name} needs; "
            "take the processor files of the same model"
        )
    with _reading(folder, problem="its processor does not work"):
        pictures = file_of_pictures(folder.path)
        _check_normalising(processor.image_processor, pictures)
        family.fit(processor, config, pictures)
    return Batcher(processor, family, device=device or chosen_device())


def _check_normalising(image_processor: Any, pictures: str) -> None:
    """Raises BadInput if pixels would be divided by zero."""
    if getattr(image_processor, "do_normalize", False) and (std := image_processor.image_std) is not None:
        values = list(std) if isinstance(std, list | tuple) else [std]
        if not all(value > 0 for value in values):
            raise BadInput(f"{pictures}: image_std is {values}, by which pixels are divided; expected numbers above 0")


def opens_alike(before: Loaded | Path, after: Path) -> None:
    """Refuse a new checkpoint of which plain transformers would say anything else than of the one it was made from.

    Args:
        before: a folder, or what was loaded from it, which need not be opened again.

    Raises:
        GateFailed: it would. BadInput: the one before does not open.
    """
    if isinstance(before, Loaded):
        place, expected = before.folder.path, before.account
    else:
        place, expected = before, _account(before)
    try:
        found = _account(after)
    except BadInput as error:
        raise GateFailed(f"{place}: its edit would not open ({error}); nothing was written") from error
    for what, names in expected.items():
        if odd := names ^ found[what]:
            raise GateFailed(f"{place}: its edit would open otherwise, '{min(odd)}' is {what}; nothing was written")


def _account(path: Path) -> dict[str, frozenset[str]]:
    """What a checkpoint opens with."""
    folder, config, _ = open_checkpoint(str(path))
    with _reading(folder, problem="does not load"):
        model, report = on_meta(folder, config)
    return {**dataclasses.asdict(report), "untied": untied(tied_pairs(model), key_of_parameter(model, folder), folder)}
