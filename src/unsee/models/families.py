"""The literal table of supported architectures."""

from __future__ import annotations

from unsee.errors import BadInput
from unsee.models.anatomy import Family
from unsee.models.llava import Llava, LlavaNext
from unsee.models.qwen import Qwen2VL, Qwen25VL

FAMILIES: dict[str, Family] = {
    "llava": Llava(),
    "llava_next": LlavaNext(),
    "qwen2_vl": Qwen2VL(),
    "qwen2_5_vl": Qwen25VL(),
}


def family_of(model_type: object, note: str = "") -> Family:
    """The family of a model, by its configuration's `model_type`.

    Args:
        note: what else to say of one that is not supported.

    Raises:
        BadInput: no family supports it.
    """
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    raise BadInput(f"config.json: model_type '{model_type}'{note} is not supported; supported: {', '.join(FAMILIES)}")
