"""Checkpoints that are no checkpoints of ours, or not whole: recognised first, named, and with the way on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from unsee.cli import main
from unsee.data.examples import UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.methods import METHODS
from unsee.models.loading import Loaded, load_model, load_visual, locate

OPENERS = pytest.mark.parametrize("open_it", [load_model, load_visual])
CONFIG, WEIGHTS, ADAPTER = "config.json", "model.safetensors", "adapter_config.json"
Opener = Callable[[str], Loaded]


def matches(says: str, line: str) -> bool:
    return "\n" not in line and re.search(".*".join(map(re.escape, says.split(" … "))), line) is not None


def edit(folder: Path, **change: Any) -> None:
    """Keys of config.json set anew; `...` takes one away."""
    whole = json.loads((folder / CONFIG).read_text()) | change
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in whole.items() if value is not ...}))


def touched(*_: Any, **__: Any) -> None:
    raise AssertionError("weights were touched")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be made."""
    for name in ("from_pretrained", "from_config"):
        monkeypatch.setattr(AutoModelForImageTextToText, name, touched)


@pytest.fixture
def no_weights(no_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no file with weights may be opened."""
    monkeypatch.setattr("unsee.checkpoint.folder.safe_open", touched)


# What config.json gives away ------------------------------------------------------------------------------------------

ORIGINAL = {  # of the LLaVA authors, as far as it tells
    "_name_or_path": "./checkpoints/vicuna-7b-v1-5",
    "architectures": ["LlavaLlamaForCausalLM"],
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}
LATER = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
HUB_15, HUB_16 = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-v1.6-mistral-7b-hf"

FOREIGN: dict[str, tuple[dict[str, Any], str]] = {  # what -> config.json, what the line says
    "original LLaVA-1.5": (ORIGINAL, f"LlavaLlamaForCausalLM … {HUB_15} … convert_llava_weights_to_hf.py"),
    "its later name": (ORIGINAL | {"model_type": "llava_llama"}, f"LlavaLlamaForCausalLM … {HUB_15}"),
    "original LLaVA-NeXT": (ORIGINAL | LATER, f"{HUB_16} … convert_llava_next_weights_to_hf.py"),
    "on Mistral": (
        ORIGINAL | LATER | {"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"},
        f"LlavaMistralForCausalLM … {HUB_16}",
    ),
    "a fine-tune that renamed its class": (ORIGINAL | {"architectures": ["Mine"]}, f"(llava) … {HUB_15}"),
    "without a class": (ORIGINAL | {"architectures": None}, f"(llava) … {HUB_15}"),
    "InternVL2": (
        {
            "architectures": ["InternVLChatModel"],
            "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
            "model_type": "internvl_chat",
            "vision_config": {"model_type": "intern_vit_6b"},
        },
        "model_type 'internvl_chat' brings its own code (AutoConfig) and is not supported; supported: llava",
    ),
    "Phi-3.5-vision": (
        {
            "architectures": ["Phi3VForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
            "model_type": "phi3_v",
        },
        "model_type 'phi3_v' brings its own code (AutoConfig) and is not supported; supported: llava",
    ),
    "a family that transformers has": (
        {"architectures": ["LlavaOnevisionForConditionalGeneration"], "model_type": "llava_onevision"},
        "model_type 'llava_onevision' is not supported; supported: llava",
    ),
    "a model_type of the future": ({"model_type": "qwen9_vl"}, "model_type 'qwen9_vl' is not supported"),
    "no model_type": ({"hidden_size": 4096}, "model_type 'None' is not supported"),
    "no vision tower": ({"model_type": "llava"}, "no vision_config … take the whole config.json"),
    "no vision tower, Qwen": (
        {"model_type": "qwen2_vl", "hidden_size": 64},
        "no vision_config … take the whole config.json",
    ),
}


@pytest.mark.usefixtures("no_weights")
@OPENERS
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("case", FOREIGN)
def test_what_config_json_gives_away_is_said_first(case: str, weights: str, open_it: Opener, tmp_path: Path) -> None:
    config, says = FOREIGN[case]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / weights).write_bytes(b"not even read")
    with pytest.raises(BadInput) as refused:
        open_it(str(tmp_path))
    line = str(refused.value)
    assert line.startswith(f"{tmp_path / CONFIG}: ")
    assert matches(says, line), line
    assert not re.search("again|not a usable", line)


@OPENERS
def test_a_supported_model_with_code_of_its_own_beside_it_opens(new_checkpoint: NewCheckpoint, open_it: Opener) -> None:
    """The control: the code is left alone, and transformers' own class is loaded."""
    folder = new_checkpoint()
    edit(folder, auto_map={"AutoConfig": "configuration_mine.MineConfig"})
    assert open_it(str(folder)).family.name == "llava"


# A hub id -------------------------------------------------------------------------------------------------------------


class Hub:
    """What the hub would give, into a folder; `asked` are the patterns of each call."""

    def __init__(self, place: Path, files: dict[str, bytes]) -> None:
        self.place, self.files, self.asked = place, files, list[list[str]]()

    def __call__(self, repo_id: str, allow_patterns: list[str]) -> str:
        self.asked.append(allow_patterns)
        for name, content in self.files.items():
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                self.place.mkdir(exist_ok=True)
                (self.place / name).write_bytes(content)
        return str(self.place)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(**files: Any) -> Hub:
        contents = {name.replace("__", "."): json.dumps(content).encode() for name, content in files.items()}
        given = Hub(tmp_path / "snapshot", contents | {WEIGHTS: b"gigabytes"})
        monkeypatch.setattr("huggingface_hub.snapshot_download", given)
        return given

    return make


REFUSED = {
    "original LLaVA-1.5": ORIGINAL,
    "InternVL2": FOREIGN["InternVL2"][0],
    "a text model": {"model_type": "llama"},
}


@OPENERS
@pytest.mark.parametrize("case", REFUSED)
def test_the_configuration_of_a_hub_id_is_read_before_its_weights(
    hub: Callable[..., Hub], case: str, open_it: Opener
) -> None:
    given = hub(config__json=REFUSED[case])
    with pytest.raises(BadInput, match=r"LLaVA checkpoint|not supported"):
        open_it("owner/name")
    assert len(given.asked) == 1
    assert not (given.place / WEIGHTS).exists()


def test_an_adapter_on_the_hub_is_told_before_anything_else_is_fetched(hub: Callable[..., Hub]) -> None:
    given = hub(adapter_config__json={"peft_type": "LORA", "base_model_name_or_path": HUB_15})
    with pytest.raises(BadInput, match=f"an adapter .* belongs to, {HUB_15}"):
        locate("owner/name")
    assert len(given.asked) == 1


def test_a_sound_hub_id_is_fetched_whole(hub: Callable[..., Hub], new_checkpoint: NewCheckpoint) -> None:
    """The control: first the configuration, then the weights."""
    folder = new_checkpoint()
    given = hub()
    given.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert load_model("owner/name").family.name == "llava"
    assert [("*.safetensors" in patterns) for patterns in given.asked[:2]] == [False, True]


# Adapters -------------------------------------------------------------------------------------------------------------

LORA = {"peft_type": "LORA", "base_model_name_or_path": HUB_15, "r": 4}
ALONE: dict[str, tuple[dict[str, Any], str]] = {  # what -> adapter_config.json, what the line says
    "LoRA": (LORA, f"an adapter (LORA) … {HUB_15} … from_pretrained('{HUB_15}' … merge_and_unload().save_pretrained"),
    "of a local base": (LORA | {"base_model_name_or_path": "models/mine"}, "models/mine … merge_and_unload()"),
    "another kind": (LORA | {"peft_type": "IA3"}, f"an adapter (IA3) … {HUB_15}"),
    "of nobody": ({"r": 4}, f"(PEFT) … whose name its {ADAPTER} lacks … from_pretrained('BASE' … merge_and_unload()"),
}


@pytest.mark.usefixtures("no_weights")
@OPENERS
@pytest.mark.parametrize("beside", ["nothing", "a configuration", "a tokenizer"])
@pytest.mark.parametrize("case", ALONE)
def test_a_lone_adapter_is_named_with_its_base_and_how_to_merge(
    case: str, beside: str, open_it: Opener, tmp_path: Path
) -> None:
    about, says = ALONE[case]
    (tmp_path / ADAPTER).write_text(json.dumps(about))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not even read")
    if beside != "nothing":
        name, content = (CONFIG, {"model_type": "llava"}) if beside == "a configuration" else ("tokenizer.json", {})
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(BadInput) as refused:
        open_it(str(tmp_path))
    line = str(refused.value)
    assert line.startswith(f"{tmp_path}: ")
    assert matches(says, line), line


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_the_line_says_merges_indeed(new_checkpoint: NewCheckpoint, tmp_path: Path) -> None:
    """The words of the message, run: what they write loads and is the base with its adapter."""
    from peft import LoraConfig, PeftModel, get_peft_model  # noqa: F401  # named in the words that are run

    base, adapter = new_checkpoint(), tmp_path / "adapter"
    tuned = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(base),
        LoraConfig(r=2, target_modules=["linear_1"], init_lora_weights=False),
    )
    tuned.save_pretrained(adapter)
    with pytest.raises(BadInput) as refused:
        load_model(str(adapter))
    words = re.search(r"merge them: (.*save_pretrained\('merged'\));", str(refused.value))
    assert words is not None
    exec(words[1].replace("'merged'", repr(str(tmp_path / "merged"))))
    for file in base.iterdir():
        if not (tmp_path / "merged" / file.name).exists():
            (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    name = "model.multi_modal_projector.linear_1.weight"
    before, after = (load_model(str(folder)).model.state_dict()[name] for folder in (base, tmp_path / "merged"))
    assert not torch.allclose(before, after)
    assert torch.allclose(after, tuned.merge_and_unload().state_dict()[name])


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_adapter_configuration_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / ADAPTER).write_text(content)
    with pytest.raises(BadInput, match=rf"{ADAPTER}: not a usable adapter configuration"):
        locate(str(tmp_path))


# Names that a wrapper gave --------------------------------------------------------------------------------------------

WRAPPED = {  # how -> the names, what the line says
    "PEFT": (lambda key: f"base_model.model.{key}", "PEFT … 'base_model.model.' … merge_and_unload()"),
    "data parallel": (lambda key: f"module.{key}", "data parallel … 'module.' … .module, or take 'module.' out"),
    "compiled": (lambda key: f"_orig_mod.{key}", "torch.compile … '_orig_mod.' … take '_orig_mod.' out"),
    "compiled in part": (
        lambda key: re.sub(r"(projector|merger)\.", r"\1._orig_mod.", key),
        "torch.compile … '_orig_mod.' in … r._orig_mod.",
    ),
    "compiled and parallel": (lambda key: f"module._orig_mod.{key}", "data parallel … 'module.'"),
    "FSDP": (lambda key: f"_fsdp_wrapped_module.{key}", "FSDP … '_fsdp_wrapped_module.'"),
    "checkpointing": (
        lambda key: key.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        "activation checkpointing … '_checkpoint_wrapped_module.'",
    ),
    "Lightning": (lambda key: f"_forward_module.{key}", "Lightning … '_forward_module.'"),
}


@OPENERS
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("how", WRAPPED)
def test_names_of_a_wrapper_are_named_with_their_cause(
    new_checkpoint: NewCheckpoint, how: str, family: str, open_it: Opener
) -> None:
    folder = new_checkpoint(family=family)
    open_it(str(folder))  # the control
    rename, says = WRAPPED[how]
    tensors = load_file(folder / WEIGHTS)
    save_file({rename(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(BadInput) as refused:
        open_it(str(folder))
    assert matches(says, str(refused.value)), str(refused.value)


@OPENERS
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_names_that_nobody_knows_are_named_by_their_first_prefix(
    new_checkpoint: NewCheckpoint, family: str, open_it: Opener
) -> None:
    folder = new_checkpoint(family=family)
    tensors = load_file(folder / WEIGHTS)
    save_file({f"student.{key}": tensor for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(BadInput) as refused:
        open_it(str(folder))
    line = str(refused.value)
    assert matches(f"its weights hold nothing … the prefix 'student.' ('student.{min(tensors)}')", line), line
    assert "\n" not in line


def test_a_second_copy_under_other_names_is_refused_too(new_checkpoint: NewCheckpoint) -> None:
    """In it nothing would be forgotten."""
    folder = new_checkpoint()
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if "linear_2" in key)
    save_file(tensors | {f"module.{key}": tensors[key].clone()}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(BadInput, match=r"data parallel.*'module\.'"):
        load_visual(str(folder))


# Quantised weights ----------------------------------------------------------------------------------------------------

QUANTISED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes, 8 bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16]},
}


def quantise(folder: Path, how: str, where: str, place: str = "top") -> None:
    """These weights as whole numbers, as that package lays them out; config.json says so, at the top or inside."""
    about = QUANTISED[how]
    if place == "top":
        edit(folder, quantization_config=about)
    else:
        edit(
            folder,
            text_config=json.loads((folder / CONFIG).read_text())["text_config"] | {"quantization_config": about},
        )
    tensors, packed = load_file(folder / WEIGHTS), {}
    for key, tensor in tensors.items():
        if not re.search(where, key) or tensor.dim() < 2:
            packed[key] = tensor
        elif how in ("gptq", "awq"):
            stem = key.removesuffix(".weight")
            packed |= {f"{stem}.qweight": torch.zeros(2, 2, dtype=torch.int32), f"{stem}.scales": torch.ones(2)}
        elif how == "fp8":
            packed[key] = tensor.to(torch.float8_e4m3fn)
            packed[key.replace(".weight", ".weight_scale_inv")] = torch.ones(1, 1)
        else:
            packed[key] = torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8)
    save_file(packed, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("place", ["top", "text"])
@pytest.mark.parametrize("how", QUANTISED)
def test_quantised_weights_are_not_trained(new_checkpoint: NewCheckpoint, how: str, place: str) -> None:
    folder = new_checkpoint()
    quantise(folder, how, "language_model", place)
    with pytest.raises(BadInput) as refused:
        load_model(str(folder), torch.float32)
    kind = QUANTISED[how]["quant_method"]
    assert matches(f"{CONFIG}: its weights are quantised ({kind}) … not trained; take the", str(refused.value))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("method", ["ga --set lora_rank=2", "graddiff", "in-context"])
def test_methods_on_answers_refuse_them_in_one_line(
    new_checkpoint: NewCheckpoint, capsys: pytest.CaptureFixture[str], tmp_path: Path, method: str
) -> None:
    folder = new_checkpoint(family="qwen2_vl")
    quantise(folder, "bitsandbytes", "language_model")
    data = "people:count=4,train=3,validation=2,test=2"
    command = f"unlearn --model {folder} --data {data} --forget first:1 --out {tmp_path / 'out'} --method {method}"
    with pytest.raises(SystemExit) as ending:
        main(command.split())
    printed = capsys.readouterr().err
    assert ending.value.code == 2
    assert matches("config.json: its weights are quantised (bitsandbytes)", printed.strip())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("how", QUANTISED)
def test_methods_on_features_need_no_more_than_a_tower_in_floats(
    new_checkpoint: NewCheckpoint, people: UnlearnData, tmp_path: Path, how: str, family: str
) -> None:
    folder = new_checkpoint(family=family)
    plain = load_visual(str(folder))
    quantise(folder, how, "language_model|model.layers")
    images = plain.batcher.images(list(people.train.pictures)[:2])
    assert torch.equal(load_visual(str(folder)).visual.features(images).states, plain.visual.features(images).states)
    manifest = unlearn(
        str(folder), EditRequest(people, people.subjects[:1], METHODS["cvf"](steps=1), 0, gate=False), tmp_path / "out"
    )
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert before.keys() == after.keys()
    differ = {key for key in before if before[key].dtype.is_floating_point and not same(before[key], after[key])}
    assert differ == set(manifest["changed"]) != set()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.float(), other.float())


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("how", QUANTISED)
def test_a_quantised_tower_is_refused_with_the_way_on(new_checkpoint: NewCheckpoint, how: str, family: str) -> None:
    folder = new_checkpoint(family=family)
    quantise(folder, how, "vision_tower|projector|visual")
    with pytest.raises(BadInput) as refused:
        load_visual(str(folder))
    stored = (
        "vision tower is quantised" if how in ("gptq", "awq") else "is stored as … only float weights can be edited"
    )
    assert matches(f"{stored} … take the checkpoint in full precision", str(refused.value)), str(refused.value)


MISSING = {  # what the error says -> the line to type
    "Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install -U bitsandbytes>=0.46.1`": (
        "pip install -U 'bitsandbytes>=0.46.1'"
    ),
    "requires accelerate: `pip install 'accelerate>=1.1.0'`": "pip install 'accelerate>=1.1.0'",
    "Loading a GPTQ quantized model requires gptqmodel (`pip install gptqmodel`) library.": "pip install gptqmodel",
    "please run:\n pip install sinq.": "pip install sinq",
    "\nLlamaConverter requires the protobuf library": "LlamaConverter requires the protobuf library",
}


@pytest.mark.parametrize("said", MISSING)
def test_a_missing_package_is_answered_with_its_install_line(
    new_checkpoint: NewCheckpoint, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError(said)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lacking)
    folder = new_checkpoint()
    quantise(folder, "gptq", "language_model")
    with pytest.raises(BadInput) as refused:
        load_model(str(folder))
    line = str(refused.value)
    assert line == (f"{folder}: does not load, quantised (gptq), a package is missing; install it: {MISSING[said]}")


def test_the_name_of_a_missing_module_is_the_last_resort(
    new_checkpoint: NewCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")

    folder = new_checkpoint()
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lacking)
    with pytest.raises(BadInput, match=r"does not load, a package is missing; install it: pip install sentencepiece$"):
        load_model(str(folder))


def test_bitsandbytes_itself_is_named_where_it_is_missing(
    new_checkpoint: NewCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers really says, on a machine without it."""
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    folder = new_checkpoint()
    quantise(folder, "bitsandbytes", "language_model")
    with pytest.raises(BadInput, match=r"install it: pip install -U 'bitsandbytes>=[\d.]+'$"):
        load_model(str(folder))


def test_quantised_weights_that_cannot_be_read_are_not_to_be_downloaded_again(
    new_checkpoint: NewCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(*_: Any, **__: Any) -> None:
        raise RuntimeError("No GPU found. A GPU is needed for quantization.")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", no_gpu)
    folder = new_checkpoint()
    quantise(folder, "gptq", "language_model")
    with pytest.raises(BadInput, match=r"quantised \(gptq\) \(No GPU found.*\); take the checkpoint in full precision"):
        load_model(str(folder))


def test_a_quantised_model_can_be_asked(new_checkpoint: NewCheckpoint, people: UnlearnData, tmp_path: Path) -> None:
    """The control: transformers reads fp8 without a GPU."""
    folder = new_checkpoint()
    quantise(folder, "fp8", r"language_model.*proj\.weight")
    found = evaluate(EvaluationRequest({"vanilla": str(folder)}, people, people.subjects[:1]), tmp_path / "out")
    assert 0 <= found.models["vanilla"].scores["retain"]["test"]["value"] <= 1
