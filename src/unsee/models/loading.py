"""Open a checkpoint from a local folder or a hub id: the whole model, or its visual module alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights

from unsee.checkpoint.folder import CheckpointFolder
from unsee.device import chosen_device
from unsee.errors import BadInput
from unsee.models.anatomy import Family, VisualModule
from unsee.models.batching import Batcher
from unsee.models.families import family_of
from unsee.models.foreign import TELLING, file_of_pictures, lost_files, quantised, refuse_foreign, refuse_wrapped

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
    """

    model: PreTrainedModel
    batcher: Batcher
    family: Family
    folder: CheckpointFolder

    @cached_property
    def visual(self) -> VisualModule:
        with _reading(self.folder):
            return self.family.visual(self.model)

    def checkpoint_keys(self, names: Mapping[str, object]) -> dict[str, str]:
        """Parameter names of the model -> tensor names in its checkpoint (transformers renames while loading).

        Raises:
            BadInput: the checkpoint stores a parameter in another form (merged or split), so it cannot be edited.
        """
        keys = _key_of_parameter(self.model, self.folder)
        lost = [name for name in names if name not in keys]
        if lost:
            raise BadInput(f"{self.folder.path}: no tensor for parameter '{lost[0]}'; it cannot be edited in place")
        return {name: keys[name] for name in names}


def locate(path_or_id: str) -> Path:
    """A local checkpoint folder as it is, or the local snapshot of a hub id (downloaded if needed).

    A hub id's configuration is read before its weights are fetched.

    Raises:
        BadInput: neither exists, or what is there can be no checkpoint of a family, see `refuse_foreign`.
    """
    path = Path(path_or_id)
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


def load_model(path_or_id: str, dtype: torch.dtype | None = None, device: str | None = None) -> Loaded:
    """The whole model in evaluation mode, in its stored dtype unless another is given.

    Args:
        device: where it is put; None: where the command was told to, see `unsee.device`.

    Raises:
        BadInput: see `open_checkpoint`; or the weights lack a tensor or have another shape than the configuration; or
            processor and model do not agree (see `Family.fit`, and the token that stands for a picture); or a dtype is
            asked of quantised weights, which have none to be edited in.
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
    problem = f"does not load, quantised ({how})" if how else "does not load"
    with _reading(folder, problem=problem, fix=IN_FULL if how else AGAIN):
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            folder.path,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            device_map={"": batcher.device} if how else None,  # such a model cannot always be moved
        )
    model, found = opened
    unfit = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if unfit:
        raise BadInput(
            f"{folder.path}: its weights hold nothing that fits '{min(unfit)}' as config.json has it; save it again"
        )
    return Loaded(model.eval() if how else model.eval().to(batcher.device), batcher, family, folder)


def load_visual(path_or_id: str, device: str | None = None) -> Loaded:
    """Vision tower and projector in float32; nothing of the language model is read from disk or allocated.

    Args:
        device: see `load_model`.

    Raises:
        BadInput: see `open_checkpoint`; or a visual weight that is missing, of another shape than the configuration
            has it, or not stored as a float.
    """
    folder, config, family = open_checkpoint(path_or_id)
    how = quantised(config)
    batcher = _batcher(folder, config, family, device)
    with _reading(folder, "config.json", "not a usable configuration"):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        with no_init_weights():
            parts = family.build_visual(config)
    for path, module in parts.items():
        model.set_submodule(path, module.float().to(batcher.device))
    keys = _key_of_parameter(model, folder)
    roots = tuple(path + "." for path in parts)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(roots)}
    lost = [name for name in wanted if name not in keys]
    if lost:
        asked = f"its vision tower is quantised ({how}); {IN_FULL}" if how else f"is this a {family.name} checkpoint?"
        raise BadInput(f"{folder.path}: its weights hold nothing for '{lost[0]}'; {asked}")
    name_of = {keys[name]: name for name in wanted}
    try:
        folder.dtypes(key for key, name in name_of.items() if wanted[name].is_floating_point())
    except BadInput as error:
        raise BadInput(f"{error}; {IN_FULL}") from error
    for key, tensor in folder.read(name_of):
        _fill(wanted[name_of[key]], tensor, key, folder)
    return Loaded(model.eval(), batcher, family, folder)


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
        family.fit(processor, config, file_of_pictures(folder.path))
    return Batcher(processor, family, device=device or chosen_device())


def _key_of_parameter(model: nn.Module, folder: CheckpointFolder) -> dict[str, str]:
    transforms = get_model_conversion_mapping(model)  # type: ignore[arg-type]
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    names = dict(model.state_dict())
    found = {}
    for key in folder.file_of:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, names)  # type: ignore[arg-type]
        if converted is None and name in names:
            found[name] = key
    return found
