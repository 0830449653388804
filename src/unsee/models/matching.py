"""Which stored tensor becomes which parameter when plain transformers opens a checkpoint, and what it says of the rest.

Everything here is asked of transformers itself, on the meta device: headers are read, weights are neither read nor
allocated.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils import logging

from unsee.checkpoint.folder import CheckpointFolder
from unsee.errors import BadInput

_ADAPTED = re.compile(r"(^|\.)(base_layer|modules_to_save|original_module|(lora|vera|hada|lokr|oft|ia3)_\w+)(\.|$)")


@dataclass(frozen=True)
class Report:
    """What transformers says of a folder while it opens it.

    Attributes:
        missing: parameters that nothing is stored for.
        unexpected: stored names that are no parameter.
        mismatched: parameters whose stored shape is another.
    """

    missing: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()
    mismatched: frozenset[str] = frozenset()


def on_meta(folder: CheckpointFolder, config: PretrainedConfig) -> tuple[PreTrainedModel, Report]:
    """The model of a folder, all of it on the meta device, and what transformers says of it.

    Quantised weights are looked at as they are stored, whatever could unpack them.
    """
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    with _quiet():
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            folder.path,
            config=plain,
            device_map="meta",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # for the caller to see
            output_loading_info=True,
        )
    model, found = opened
    mismatched = (name for name, *_ in found["mismatched_keys"])
    return model, Report(*map(frozenset, (found["missing_keys"], found["unexpected_keys"], mismatched)))


def key_of_parameter(model: PreTrainedModel, folder: CheckpointFolder) -> dict[str, str]:
    """Names in the model -> names of the stored tensors that are loaded into them as they stand.

    Raises:
        BadInput: two stored tensors for one, or an adapter that is not merged.
    """
    for key in folder.file_of:
        if _ADAPTED.search(key):
            raise BadInput(
                f"{folder.path}: tensor '{key}' is of an adapter that is not merged; merge it (peft: merge_and_unload) "
                "and save again"
            )
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    names: dict[str, Any] = dict(model.state_dict())
    found: dict[str, str] = {}
    for key in sorted(folder.file_of, key=dot_natural_key):  # as transformers goes through them
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, names)
        if name not in names and key in names:
            name, converted = rename_source_key(key, [], [], model.base_model_prefix, names)
        if converted is not None or name not in names:
            continue
        if name in found:
            raise BadInput(
                f"{folder.path}: '{found[name]}' and '{key}' are both '{name}' to transformers; keep one of them"
            )
        found[name] = key
    return found


def tied_pairs(model: PreTrainedModel) -> list[tuple[str, str]]:
    """Parameters that are one by the configuration; transformers leaves them two where it finds two different ones."""
    return list(model.get_expanded_tied_weights_keys(all_submodels=True).items())


def untied(tied: Iterable[tuple[str, str]], keys: Mapping[str, str], folder: CheckpointFolder) -> frozenset[str]:
    """Of parameters that are one by the configuration, those stored as two of other values or precision.

    Args:
        tied: see `tied_pairs`.
        keys: see `key_of_parameter`.
    """
    found = []
    for one, other in tied:
        if one in keys and other in keys:
            (_, first), (_, second) = folder.read((keys[one], keys[other]))
            if first.dtype != second.dtype or not torch.equal(first, second):
                found.append(one)
    return frozenset(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the report on the screen: whoever opens a checkpoint to use it shows it once."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
