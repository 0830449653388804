"""Open a checkpoint from a local folder or a hub id: the whole model, or its visual module alone."""

from __future__ import annotations

import os
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

    Raises:
        BadInput: neither exists.
    """
    path = Path(os.path.expanduser(path_or_id))
    if path.is_dir():
        return path
    if path.exists() or path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise BadInput(f"--model {path_or_id}: no such folder; expected a checkpoint folder or a hub id 'owner/name'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md"]
        return Path(snapshot_download(path_or_id, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = _first_line(error)
        raise BadInput(f"--model {path_or_id}: no such folder, and the hub did not give it ({reason})") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):
        return " ".join([type(error).__name__, *lines])
    return " ".join(lines) if lines[0].endswith(":") else lines[0]


@contextmanager
def _reading(folder: CheckpointFolder, file: str = "", problem: str = "") -> Iterator[None]:
    """Whatever is wrong with a checkpoint's files becomes one line that names the folder, and with `file` the file."""
    try:
        yield
    except BadInput as error:  # of a family, which knows the name of the file only
        raise BadInput(f"{folder.path}/{error}") from error
    except Exception as error:  # of transformers, its validators, tokenizers, json, ...: whatever is damaged
        if not problem:
            raise
        raise BadInput(f"{folder.path / file}: {problem} ({_first_line(error)}); save or download it again") from error


def open_checkpoint(path_or_id: str) -> tuple[CheckpointFolder, PretrainedConfig, Family]:
    """Everything about a checkpoint but its weights.

    Raises:
        BadInput: no such checkpoint, a configuration that cannot be read, or a family that is not supported.
    """
    folder = CheckpointFolder(locate(path_or_id))
    with _reading(folder, "config.json", "not a usable configuration"):
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
        return folder, config, family_of(config)


def load_model(path_or_id: str, dtype: torch.dtype | None = None, device: str | None = None) -> Loaded:
    """The whole model in evaluation mode, in its stored dtype unless another is given.

    Args:
        device: where it is put; None: where the command was told to, see `unsee.device`.

    Raises:
        BadInput: see `open_checkpoint`; or the weights lack a tensor or have another shape than the configuration; or
            processor and model do not agree on the token that stands for a picture.
    """
    folder, config, family = open_checkpoint(path_or_id)
    with _reading(folder, problem="does not load"):
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            folder.path,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    model, found = opened
    unfit = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if unfit:
        raise BadInput(
            f"{folder.path}: its weights hold nothing that fits '{min(unfit)}' as config.json has it; save it again"
        )
    batcher = _batcher(folder, family, device)
    expected, known = config.image_token_id, batcher.tokenizer.convert_tokens_to_ids(family.image_placeholder)
    if known != expected:
        raise BadInput(
            f"{folder.path / 'config.json'}: the image token is {expected}, but its tokenizer has "
            f"'{family.image_placeholder}' as {known}; correct one of them"
        )
    return Loaded(model.eval().to(batcher.device), batcher, family, folder)


def load_visual(path_or_id: str, device: str | None = None) -> Loaded:
    """Vision tower and projector in float32; nothing of the language model is read from disk or allocated.

    Args:
        device: see `load_model`.

    Raises:
        BadInput: see `open_checkpoint`; or a visual weight that is missing, of another shape than the configuration
            has it, or not stored as a float.
    """
    folder, config, family = open_checkpoint(path_or_id)
    with _reading(folder, "config.json", "not a usable configuration"):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        with no_init_weights():
            parts = family.build_visual(config)
    batcher = _batcher(folder, family, device)
    for path, module in parts.items():
        model.set_submodule(path, module.float().to(batcher.device))
    keys = _key_of_parameter(model, folder)
    roots = tuple(path + "." for path in parts)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(roots)}
    lost = [name for name in wanted if name not in keys]
    if lost:
        raise BadInput(f"{folder.path}: its weights hold nothing for '{lost[0]}'; is this a {family.name} checkpoint?")
    name_of = {keys[name]: name for name in wanted}
    folder.dtypes(key for key, name in name_of.items() if wanted[name].is_floating_point())
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


def _batcher(folder: CheckpointFolder, family: Family, device: str | None) -> Batcher:
    with _reading(folder, problem="its processor does not load"):
        processor = family.processor_class.from_pretrained(folder.path, trust_remote_code=False)
    made = getattr(getattr(processor, "image_processor", None), "model_input_names", ())
    if lost := [name for name in family.image_inputs if name not in made]:
        raise BadInput(
            f"{folder.path}: its processor makes no {lost[0]} of pictures, which {family.name} needs; "
            "take the processor files of the same model"
        )
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
