"""Checkpoints of others that look like ours and are not: told by their small files, before weights are touched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from unsee.checkpoint.folder import INDEX, SINGLE
from unsee.errors import BadInput
from unsee.models.families import family_of

ADAPTER = "adapter_config.json"
TELLING = ("config.json", ADAPTER)  # what `refuse_foreign` reads: a few kilobytes, fetched before anything else
WEIGHTS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
PICTURES = "preprocessor_config.json"
SETTINGS = "processor_config.json"
WORDS = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any of them
WRAPPERS = {  # what stands in the names of tensors -> what put it there, and how to save without it
    r"^base_model\.model\.": ("PEFT", "save merge_and_unload() of it"),
    r"(^|(?<=^model\.))module\.": ("torch's data parallel wrapper", "save its .module"),
    r"^_forward_module\.": ("Lightning", "save its ._forward_module"),
    r"(^|\.)_orig_mod\.": ("torch.compile", "save its ._orig_mod"),
    r"(^|\.)_fsdp_wrapped_module\.": ("FSDP", "save its full state dict"),
    r"(^|\.)_checkpoint_wrapped_module\.": ("activation checkpointing", "save it without that"),
}


def refuse_foreign(folder: Path, complete: bool = True) -> None:
    """Refuse a folder that is no checkpoint of a supported family, by what it says of itself.

    Args:
        complete: whether weights would be there too if it had any; not so while only `TELLING` was fetched.

    Raises:
        BadInput: an original LLaVA checkpoint, a lone adapter, a `model_type` that is not supported or brings its own
            code, no configuration of a vision tower (its sizes would be guessed), or files that are no JSON objects.
    """
    file = folder / "config.json"
    config = _object(file, "not a usable configuration")
    if original := _original_llava(config or {}):
        raise BadInput(f"{file}: {original}")
    adapter = _object(folder / ADAPTER, "not a usable adapter configuration")
    whole = any((folder / name).is_file() for name in WEIGHTS) if complete else config is not None
    if adapter is not None and not whole:
        raise BadInput(f"{folder}: {_how_to_merge(folder, adapter)}")
    if config is None:
        return  # whoever opens it says what was expected
    own = f" brings its own code ({next(iter(config['auto_map']))}) and" if config.get("auto_map") else ""
    try:
        family_of(config.get("model_type"), own)
    except BadInput as error:
        raise BadInput(f"{folder}/{error}") from error
    if not config.get("vision_config"):
        raise BadInput(
            f"{file}: no vision_config, so the sizes of the vision tower are unknown; take the whole config.json, as "
            "transformers saved it"
        )


def _object(file: Path, problem: str) -> dict[str, Any] | None:
    """What a JSON file holds; None where there is no such file."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file}: {problem} ({error}); save or download it again") from error
    if not isinstance(found, dict):
        raise BadInput(f"{file}: {problem} (expected a JSON object); save or download it again")
    return found


def _original_llava(config: Mapping[str, Any]) -> str:
    """What to say of a checkpoint in the layout of the LLaVA authors; empty for any other."""
    names = [str(name) for name in config.get("architectures") or []]
    name = next((name for name in names if re.fullmatch(r"Llava\w*ForCausalLM", name)), None)
    if name is None and "mm_vision_tower" not in config:
        return ""
    later = config.get("image_aspect_ratio") == "anyres" or "unpad" in str(config.get("mm_patch_merge_type"))
    hub, script = ("llava-v1.6-mistral-7b-hf", "llava_next") if later else ("llava-1.5-7b-hf", "llava")
    return (
        f"an original LLaVA checkpoint ({name or config.get('model_type')}), whose layout transformers does not read; "
        f"take its conversion (the hub's llava-hf/{hub} is one), or convert it with convert_{script}_weights_to_hf.py "
        "of transformers' repository"
    )


def _how_to_merge(folder: Path, adapter: Mapping[str, Any]) -> str:
    named = adapter.get("base_model_name_or_path")
    base = str(named) if named else "BASE"
    return (
        f"an adapter ({adapter.get('peft_type') or 'PEFT'}) without the model it belongs to, "
        f"{base if named else 'whose name its ' + ADAPTER + ' lacks'}; merge them: "
        f"base = AutoModelForImageTextToText.from_pretrained({base!r}, dtype='auto'); "
        f"PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained('merged'); then copy the "
        "base's processor files into merged (docs/families.md)"
    )


def refuse_wrapped(place: Path, keys: Iterable[str]) -> None:
    """Refuse tensors stored under the names that a wrapper around the model gave them.

    Raises:
        BadInput: there are any. Beside well-named ones they are a second copy, in which nothing would be forgotten.
    """
    for key in keys:
        for pattern, (who, how) in WRAPPERS.items():
            if found := re.search(pattern, key):
                prefix = found[0].lstrip(".")
                raise BadInput(
                    f"{place}: its tensors are named as {who} names them ('{prefix}' in '{key}'); {how}, or take "
                    f"'{prefix}' out of the names"
                )


def quantised(config: PretrainedConfig) -> str:
    """How the weights of a checkpoint are quantised, e.g. `bitsandbytes`; empty if they are not."""
    text = config.get_text_config()
    about = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if not about:
        return ""
    said = about if isinstance(about, dict) else about.to_dict()
    return str(said.get("quant_method") or "in a way that it does not name")


def file_of_pictures(folder: Path) -> str:
    """The file that says how pictures are prepared: newer checkpoints have it inside `SETTINGS`."""
    inside = "image_processor" in (_object(folder / SETTINGS, "its processor does not load") or {})
    return SETTINGS if inside else PICTURES


def lost_files(folder: Path) -> list[str]:
    """Files of tokenizer and image processor that every checkpoint is saved with and this one lacks."""
    lost = [] if (folder / file_of_pictures(folder)).is_file() else [PICTURES]
    lost += [] if any((folder / name).is_file() for name in VOCABULARIES) else [VOCABULARIES[0]]
    return lost + ([] if (folder / WORDS).is_file() else [WORDS])
