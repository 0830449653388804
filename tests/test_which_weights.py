"""Which weights: what is read, edited, hashed and compared is what plain transformers loads, or it is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewModel
from layouts import (
    Tensors,
    adapter,
    change,
    check_edit,
    configure,
    other,
    plain,
    put,
    shards_beside,
    split,
    stored,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from unsee.checkpoint import write
from unsee.checkpoint.apply_patch import carry_patches
from unsee.checkpoint.folder import INDEX, SINGLE, CheckpointFolder
from unsee.checkpoint.patch import make_patch
from unsee.checkpoint.write import write_edited
from unsee.data.examples import UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput, GateFailed
from unsee.methods.ascent import GradientDifference
from unsee.methods.nscvf_direct import DirectForgetting
from unsee.models import loading
from unsee.models.families import FAMILIES
from unsee.models.loading import load_model, load_visual, opens_alike

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"  # as Qwen2-VL is stored


@pytest.fixture(scope="session")
def sound(new_model: NewModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a single file for two families; the Qwen is tied. Read only."""
    folders = {}
    for family in ("llava", "qwen2_vl"):
        model, processor = new_model(family)
        if family == "qwen2_vl":
            model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
            model.tie_weights()
        folders[family] = tmp_path_factory.mktemp("sound") / family
        model.save_pretrained(folders[family])
        processor.save_pretrained(folders[family])
    return folders


# What is loaded, and what is refused ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`says` is None where the folder means one thing; else what its refusal names."""

    name: str
    make: Callable[[Path], object]
    says: str | None = None
    family: str = "llava"


def stale_index(folder: Path) -> None:
    places = dict.fromkeys(stored(folder), "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def named(folder: Path, name: str) -> None:
    """Other weights under the name of the config, the usual ones beside them."""
    tensors = stored(folder)
    if name.endswith(".json"):
        shards_beside(folder, tensors, 2, name)
    else:
        put(folder, tensors, name)
    put(folder, other(tensors))
    configure(folder, transformers_weights=name)


def twice(folder: Path, old: str, new: str) -> None:
    """One parameter under a second name."""

    def edit(tensors: Tensors) -> None:
        key = next(key for key in tensors if old in key)
        tensors[key.replace(old, new, 1)] = tensors[key] + 1

    change(folder, edit)


def in_two_shards(folder: Path, equal: bool) -> None:
    split(folder)
    files = sorted(folder.glob("model-*"))
    first, second = (load_file(file) for file in files[:2])
    key = next(iter(first))
    save_file({**second, key: first[key] + (not equal)}, files[1], {"format": "pt"})


def renamed(folder: Path, rename: Callable[[str], str]) -> None:
    put(folder, {rename(key): t for key, t in stored(folder).items()})


def with_head(folder: Path, equal: bool = True, dtype: torch.dtype = torch.float32) -> None:
    change(folder, lambda t: t.update({HEAD: (t[EMBEDDING] + (not equal)).to(dtype)}))


CASES = [
    Case("single file", lambda f: None),
    Case("shards", split),
    Case("single file and other shards", lambda f: shards_beside(f, other(stored(f)))),
    Case("single file and a stale index", stale_index),
    Case("single file and an index that is no JSON", lambda f: (f / INDEX).write_text("{")),
    Case("single file and shards nobody names", lambda f: put(f, other(stored(f)), "model-00001-of-00001.safetensors")),
    Case("a variant beside it", lambda f: put(f, other(stored(f)), "model.fp16.safetensors")),
    Case("a backup beside it", lambda f: put(f, other(stored(f)), "model.safetensors.bak")),
    Case("only a variant", lambda f: (f / SINGLE).rename(f / "model.fp16.safetensors"), "no model.safetensors"),
    Case("a file of the config's own", lambda f: named(f, "mine.safetensors")),
    Case("an index of the config's own", lambda f: named(f, "mine.safetensors.index.json")),
    Case("a file the config names in vain", lambda f: configure(f, transformers_weights="gone.safetensors"), "gone"),
    Case("a file outside", lambda f: configure(f, transformers_weights="../x.safetensors"), "'../x.safetensors'"),
    Case("pickle by the config", lambda f: configure(f, transformers_weights="adapter_model.bin"), "adapter_model.bin"),
    Case("shards of torch.distributed", lambda f: put(f, {}, "shard-00001-model-00001-of-00001.safetensors"), "shard-"),
    Case("one tensor in two shards", lambda f: in_two_shards(f, equal=False), "keep one"),
    Case("one tensor in two shards, equal", lambda f: in_two_shards(f, equal=True), "keep one"),
    Case("old and new name", lambda f: twice(f, "vision_tower.", "vision_tower.vision_model."), "keep one of them"),
    Case("with and without root", lambda f: twice(f, "multi_modal", "model.multi_modal"), "keep one of them"),
    Case(
        "a language tensor twice", lambda f: twice(f, "language_model.model.", "model.language_model."), "keep one of"
    ),
    Case("a full model and an adapter", adapter, "adapter_config.json"),
    Case("shards and an adapter", lambda f: [split(f), adapter(f)], "adapter_config.json"),
    Case("weights of an adapter without its config", lambda f: put(f, {}, "adapter_model.safetensors")),
    Case(
        "a base of adapters, language",
        lambda f: renamed(f, lambda k: k.replace("q_proj.weight", "q_proj.base_layer.weight") if "lang" in k else k),
        "base_layer",
    ),
    Case(
        "a base of adapters, vision",
        lambda f: renamed(f, lambda k: k.replace("fc1.weight", "fc1.base_layer.weight")),
        "base_layer",
    ),
    Case(
        "adapters beside full weights",
        lambda f: change(f, lambda t: t.update({"language_model.model.layers.0.q_proj.lora_A.weight": torch.ones(2)})),
        "lora_A",
    ),
    Case("no head", lambda f: renamed(f, lambda k: k.replace("lm_head", "head")), "lm_head.weight"),
    Case(
        "a language tensor of another shape",
        lambda f: change(f, lambda t: t.update({"language_model.model.norm.weight": torch.ones(3)})),
        "norm.weight",
    ),
    Case("a tensor that is no parameter", lambda f: change(f, lambda t: t.update({"extra.weight": torch.ones(3)}))),
    Case("tied, stored once", lambda f: None, family="qwen2_vl"),
    Case("tied, stored twice", with_head, family="qwen2_vl"),
    Case("tied, stored twice and different", lambda f: with_head(f, equal=False), family="qwen2_vl"),
    Case("tied, the head alone", lambda f: renamed(f, lambda k: HEAD if k == EMBEDDING else k), family="qwen2_vl"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_is_edited_is_what_transformers_loads(case: Case, sound: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sound[case.family], tmp_path / "in")
    case.make(folder)
    if case.says is None:
        check_edit(folder, tmp_path / "out")
        load_model(str(folder))
        return
    for open_it in (load_visual, load_model):
        with pytest.raises(BadInput, match=re.escape(case.says)) as refused:
            open_it(str(folder))
        assert "\n" not in str(refused.value)
        assert str(refused.value).count(str(folder)) == 1


def test_a_stale_index_in_a_subfolder_stays_behind(sound: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sound["llava"], tmp_path / "in")
    for name in ("old", "templates"):
        (folder / name).mkdir()
        (folder / name / "settings.json").write_text("{}")
    (folder / "old" / INDEX).write_text("{}")
    write_edited(CheckpointFolder(folder), {}, tmp_path / "out", {})
    assert (tmp_path / "out" / "templates").is_dir()
    assert not (tmp_path / "out" / "old").exists()


@pytest.mark.parametrize(
    ("name", "kept"),
    [(f"model{end}", False) for end in (".safetensors~", ".bin.old", ".PTH", ".npz", ".onnx_data", ".bin.index.json")]
    + [(name, True) for name in ("tokenizer.model", "merges.txt", "notes.md", "binary.json", "vocab.ptx.txt")],
)
def test_no_second_copy_of_the_weights_is_left(sound: dict[str, Path], tmp_path: Path, name: str, kept: bool) -> None:
    folder = shutil.copytree(sound["llava"], tmp_path / "in")
    (folder / name).write_text("x")
    write_edited(CheckpointFolder(folder), {}, tmp_path / "out", {})
    assert (tmp_path / "out" / name).exists() == kept


# Tied weights that are stored twice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["none", "equal", "alone"])
def test_a_tied_model_stays_tied(
    sound: dict[str, Path], people: UnlearnData, forget: tuple[str, ...], tmp_path: Path, head: str
) -> None:
    """An edit of the embeddings changes both stored copies, and the saved model is the one in memory."""
    folder = shutil.copytree(sound["qwen2_vl"], tmp_path / "in")
    if head == "equal":
        with_head(folder)
    if head == "alone":
        renamed(folder, lambda key: HEAD if key == EMBEDDING else key)
    method = GradientDifference(steps=2, learning_rate=1e-2, batch=4)
    manifest = unlearn(str(folder), EditRequest(people, forget, method, 0, gate=False), tmp_path / "out")
    assert {HEAD, EMBEDDING} & set(manifest["changed"]) == set(stored(folder)) & {HEAD, EMBEDDING}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    if head == "alone":  # transformers draws numbers for what it ties afterwards, so the steps are other ones
        return
    reference = shutil.copytree(sound["qwen2_vl"], tmp_path / "reference")
    unlearn(str(reference), EditRequest(people, forget, method, 0, gate=False), tmp_path / "expected")
    expected = plain(tmp_path / "expected")[0]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("equal", "dtype"), [(False, torch.float32), (True, torch.bfloat16), (False, torch.bfloat16)])
def test_tied_weights_that_differ_are_refused_before_they_are_trained(
    sound: dict[str, Path],
    people: UnlearnData,
    forget: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    equal: bool,
    dtype: torch.dtype,
) -> None:
    folder = shutil.copytree(sound["qwen2_vl"], tmp_path / "in")
    with_head(folder, equal, dtype)
    monkeypatch.setattr("unsee.methods.parts.base.Plan.carry_out", lambda *_: pytest.fail("trained"))
    method = GradientDifference(steps=2, learning_rate=1e-2, batch=4)
    with pytest.raises(BadInput, match=f"'{HEAD}' and '{EMBEDDING}'.*tie_word_embeddings"):
        unlearn(str(folder), EditRequest(people, forget, method, 0, gate=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest = unlearn(str(folder), EditRequest(people, forget, DirectForgetting(), 0, gate=False), tmp_path / "seen")
    assert not {HEAD, EMBEDDING} & set(manifest["changed"])
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"tie_word_embeddings": False}
    configure(folder, tie_word_embeddings=False, text_config=text)  # as the refusal says
    monkeypatch.undo()
    unlearn(str(folder), EditRequest(people, forget, method, 0, gate=False), tmp_path / "out")


# Nothing is published that opens otherwise ----------------------------------------------------------------------------


def spoil_name(folder: Path) -> None:
    renamed(folder, lambda key: key.replace("lm_head", "head"))


def spoil_config(folder: Path) -> None:
    configure(folder, transformers_weights="gone.safetensors")


def spoil_untouched(folder: Path) -> None:
    change(folder, lambda t: t[next(k for k in t if "lm_head" in k)].add_(1))


def spoil_edited(folder: Path) -> None:
    change(folder, lambda t: t[next(k for k in t if "linear_1.weight" in k)].mul_(2))


def spoil_by_adapter(folder: Path) -> None:
    adapter(folder)


@pytest.mark.parametrize(
    "spoil",
    [spoil_name, spoil_config, spoil_untouched, spoil_edited, spoil_by_adapter],
    ids=lambda spoil: spoil.__name__,
)
def test_an_output_that_is_not_the_input_with_its_edits_is_not_published(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    source = CheckpointFolder(sound["llava"])
    key = next(key for key in source.file_of if key.endswith("linear_1.weight"))
    edits = {key: dict(source.read([key]))[key] + 1}
    write_edited(source, edits, tmp_path / "sound", {}, opens=partial(opens_alike, source.path))
    put_json = write.write_json

    def spoilt(path: Path, value: Any) -> None:
        put_json(path, value)
        spoil(path.parent)

    monkeypatch.setattr(write, "write_json", spoilt)
    with pytest.raises(GateFailed, match="nothing was written"):
        write_edited(source, edits, tmp_path / "out", {}, opens=partial(opens_alike, source.path))
    assert not (tmp_path / "out").exists()
    assert {item.name for item in tmp_path.iterdir()} == {"sound"}


def test_what_is_loaded_need_not_be_opened_again(
    sound: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device too that takes seconds: once for the base, once for its edit."""
    opened: list[Path] = []
    real = loading.on_meta

    def counted(folder: CheckpointFolder, config: Any) -> Any:
        opened.append(folder.path)
        return real(folder, config)

    monkeypatch.setattr(loading, "on_meta", counted)
    check_edit(sound["llava"], tmp_path / "out", patched=False)
    assert [path for path in opened if path == sound["llava"]] == [sound["llava"]]
    assert len(opened) == 2


@pytest.mark.parametrize("what", ["renamed", "misshapen", "unexpected", "untied"])
def test_folders_that_open_otherwise_are_told_apart(sound: dict[str, Path], tmp_path: Path, what: str) -> None:
    before = shutil.copytree(sound["qwen2_vl"], tmp_path / "before")
    with_head(before)
    after = shutil.copytree(before, tmp_path / "after")
    opens_alike(before, after)
    spoil: dict[str, Callable[[Tensors], object]] = {
        "renamed": lambda t: t.update({"gone": t.pop("model.norm.weight")}),
        "misshapen": lambda t: t.update({"model.norm.weight": torch.ones(3)}),
        "unexpected": lambda t: t.update({"more": torch.ones(3)}),
        "untied": lambda t: t[HEAD].add_(1),
    }
    change(after, spoil[what])
    with pytest.raises(GateFailed, match="would open otherwise"):
        opens_alike(before, after)


def test_a_forced_patch_does_not_untie(sound: dict[str, Path], tmp_path: Path) -> None:
    """Made of a model whose head is stored once, put onto one that stores it twice."""
    before = shutil.copytree(sound["qwen2_vl"], tmp_path / "before")
    source = CheckpointFolder(before)
    write_edited(source, {EMBEDDING: dict(source.read([EMBEDDING]))[EMBEDDING] + 1}, tmp_path / "after", {})
    make_patch(before, tmp_path / "after", tmp_path / "patch")
    tuned = shutil.copytree(before, tmp_path / "tuned")
    change(tuned, lambda t: t["model.norm.weight"].add_(1))
    carry_patches(tuned, [tmp_path / "patch"], tmp_path / "out", forced=True, opens=opens_alike)
    with_head(tuned)
    with pytest.raises(GateFailed, match="untied"):
        carry_patches(tuned, [tmp_path / "patch"], tmp_path / "not", forced=True, opens=opens_alike)
    assert not (tmp_path / "not").exists()


# The hub's own layout -------------------------------------------------------------------------------------------------

HUB = json.loads(Path(__file__).with_name("hub_layouts.json").read_text())
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "image_size")
VISION = ("depth", "embed_dim", "num_heads", "patch_size", "mlp_ratio", "out_hidden_size", "window_size")


def sized(config: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it is written on the hub, with the sizes of another."""
    sizes = (
        *SIZES,
        *VISION,
        "fullatt_block_indexes",
        "num_key_value_heads",
        "spatial_patch_size",
        "image_grid_pinpoints",
    )
    return {key: like.get(key, value) if key in sizes else value for key, value in config.items()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", list(HUB))
@torch.no_grad()
def test_the_hubs_own_layout_opens_with_transformers_own_features(
    family: str, shards: int, new_model: NewModel, ragged_people: UnlearnData, tmp_path: Path
) -> None:
    model, processor = new_model(family)
    folder, ours = tmp_path / "in", model.config.to_dict()
    processor.save_pretrained(folder)
    config = HUB[family]["config"]
    config = sized(config, ours if "text_config" in config else ours | ours["text_config"])
    config |= {part: sized(config[part], ours[part]) for part in ("vision_config", "text_config") if part in config}
    ids = {**ours["text_config"], **ours, "image_token_index": model.config.image_token_id}
    config |= {key: ids.get(key) for key in config if key.endswith(("token_id", "token_index"))}
    if "rope_scaling" in config:
        config["rope_scaling"] |= {"mrope_section": ours["text_config"]["rope_parameters"]["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(config))
    made = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    made.save_pretrained(tmp_path / "saved")
    put(
        folder,
        {
            key.replace("vision_tower.", "vision_tower.vision_model."): t
            for key, t in stored(tmp_path / "saved").items()
        },
    )
    assert {re.sub(r"\.\d+\.", ".0.", key) for key in stored(folder)} == set(HUB[family]["keys"])
    if shards > 1:
        split(folder, shards)
    alone = load_visual(str(folder))
    assert alone.family is FAMILIES[family]
    images = alone.batcher.images(list(ragged_people.train.pictures)[:4])
    features = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).get_image_features(**images)
    whole = load_model(str(folder), torch.float32)  # an assembly needs LLaVA-NeXT's newline, which is no visual weight
    found = torch.cat(whole.visual.assemble(alone.visual.features(images), images))
    torch.testing.assert_close(found, torch.cat(list(features.pooler_output)), rtol=1e-5, atol=1e-6)
    check_edit(folder, tmp_path / "out")
