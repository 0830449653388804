"""Models: the layer a LLaVA reads, loading the whole model or its visual module alone. All families: test_families."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import NewCheckpoint, NewModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unsee.checkpoint.folder import CheckpointFolder
from unsee.data.examples import UnlearnData
from unsee.errors import BadInput
from unsee.models.batching import Batcher
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model, load_visual, locate

LLAVAS = ("llava", "llava_next")


def pictures(batcher: Batcher, people: UnlearnData, count: int = 3) -> dict[str, Tensor]:
    return batcher.images(list(people.train.pictures)[:count])


# The layer that is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layer", "strategy"),
    [(name, layer, "default") for name in LLAVAS for layer in (-1, -2, 2)] + [("llava", -2, "full")],
)
@torch.no_grad()
def test_features_are_read_where_the_configuration_says(
    new_model: NewModel, ragged_people: UnlearnData, family: str, layer: int, strategy: str
) -> None:
    model, processor = new_model(family, layer=layer, strategy=strategy)
    images = pictures(Batcher(processor, FAMILIES[family]), ragged_people)
    expected = torch.cat(list(model.get_image_features(**images).pooler_output))

    def found() -> Tensor:
        visual = FAMILIES[family].visual(model)
        tokens = visual.features(images)
        assert (tokens.grids[0] == (1, 1, 5)) == (strategy == "full")
        return torch.cat(visual.assemble(tokens, images))

    torch.testing.assert_close(found(), expected, rtol=1e-5, atol=1e-6)
    model.config.vision_feature_layer = 1
    assert not torch.allclose(found(), expected, rtol=0.1)


@pytest.mark.parametrize(("layer", "behind"), [(-1, 0), (-2, 1), (2, 2), (-3, 2)])
def test_only_layers_that_influence_the_output_are_editable(
    new_model: NewModel, people: UnlearnData, layer: int, behind: int
) -> None:
    model, processor = new_model(layer=layer)
    visual = FAMILIES["llava"].visual(model)
    assert len(visual.blocks) == 4 - behind
    offered = visual.editable(len(visual.blocks))
    visual.features(pictures(Batcher(processor, FAMILIES["llava"]), people)).states.square().sum().backward()
    assert all(module.weight.grad is not None and module.weight.grad.any() for module in offered.values())
    every = [m for m in (*visual.vision_tower.modules(), *visual.projector.modules()) if isinstance(m, nn.Linear)]
    rest = [m for m in every if m not in offered.values()]
    assert len(rest) == 6 * behind
    assert all(module.weight.grad is None for module in rest)


def test_editable_counts_back_from_the_feature_layer(new_model: NewModel) -> None:
    model, _ = new_model(layer=-2)
    visual = FAMILIES["llava"].visual(model)
    named = dict(model.named_modules())

    def blocks(last: int) -> set[str]:
        offered = visual.editable(last)
        assert all(named[name] is module for name, module in offered.items())
        assert sum("projector" in name for name in offered) == 2
        return {name.split("layers.")[1][0] for name in offered if "layers." in name}

    assert [blocks(last) for last in range(4)] == [set(), {"2"}, {"1", "2"}, {"0", "1", "2"}]
    for last in (-1, 4):
        with pytest.raises(BadInput, match=f"last_blocks={last}: expected 0 to 3"):
            visual.editable(last)


@pytest.mark.parametrize("family", LLAVAS)
def test_several_feature_layers_are_refused(new_model: NewModel, family: str) -> None:
    model, _ = new_model(family)
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(BadInput, match="only a single layer"):
        FAMILIES[family].visual(model)


@pytest.mark.parametrize("family", LLAVAS)
def test_towers_that_are_not_clip_are_refused(new_model: NewModel, family: str) -> None:
    """SigLIP has no first token and other parts: better no edit than one in the wrong place."""
    model, _ = new_model(family)
    FAMILIES[family].visual(model)
    model.config.vision_config.model_type = "siglip_vision_model"
    with pytest.raises(BadInput, match="'siglip_vision_model'"):
        FAMILIES[family].visual(model)


# Loading --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["single file", "sharded", "bf16"])
def any_checkpoint(request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint) -> Path:
    if request.param == "sharded":
        folder = new_checkpoint(shard="20KB")
        assert len(CheckpointFolder(folder).files) > 3
        return folder
    return new_checkpoint(dtype=torch.bfloat16 if request.param == "bf16" else torch.float32)


def test_visual_module_alone_is_bit_identical_and_reads_nothing_else(
    any_checkpoint: Path, people: UnlearnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(str(any_checkpoint), torch.float32)
    asked: list[str] = []
    read = CheckpointFolder.read

    def spy(self: CheckpointFolder, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        keys = list(keys)
        asked.extend(keys)
        return read(self, keys)

    monkeypatch.setattr(CheckpointFolder, "read", spy)
    alone = load_visual(str(any_checkpoint))
    expected = whole.model.state_dict()
    for part in ("vision_tower", "projector"):
        ours, theirs = getattr(alone.visual, part).state_dict(), getattr(whole.visual, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, theirs[name]), name
    read_here = {name for name, tensor in alone.model.state_dict().items() if not tensor.is_meta}
    assert {name for name in expected if "vision_tower" in name or "projector" in name} == read_here
    assert len(asked) == len(read_here)
    assert not [key for key in asked if "language_model" in key or "lm_head" in key]
    images = pictures(alone.batcher, people)
    assert torch.equal(alone.visual.features(images).states, whole.visual.features(images).states)


def test_whole_model_keeps_its_stored_dtype_unless_told(checkpoint_bf16: Path) -> None:
    assert load_model(str(checkpoint_bf16)).model.dtype == torch.bfloat16
    assert load_model(str(checkpoint_bf16), torch.float32).model.dtype == torch.float32
    assert not load_model(str(checkpoint_bf16)).model.training


def test_every_parameter_finds_its_tensor_in_the_checkpoint(any_checkpoint: Path) -> None:
    loaded = load_model(str(any_checkpoint))
    parameters = dict(loaded.model.named_parameters())
    keys = loaded.checkpoint_keys(parameters)
    stored = dict(loaded.folder.read(keys.values()))
    assert all(torch.equal(parameter, stored[keys[name]]) for name, parameter in parameters.items())
    with pytest.raises(BadInput, match=r"no tensor for parameter 'made\.up'"):
        loaded.checkpoint_keys({"made.up": None})


def test_a_tied_head_is_stored_once_and_found(new_model: NewModel, tmp_path: Path) -> None:
    model, processor = new_model()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    parameters = dict(loaded.model.named_parameters())
    assert "lm_head.weight" not in parameters
    keys = loaded.checkpoint_keys(parameters)
    assert set(keys.values()) == set(loaded.folder.file_of)
    assert load_visual(str(tmp_path)).visual.projector.state_dict().keys()


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copied")


OPENERS = pytest.mark.parametrize("open_it", [load_model, load_visual])


@OPENERS
@pytest.mark.parametrize("stored", ["lost", "misshapen"])
def test_weights_that_do_not_fit_the_configuration_are_bad_input(
    copied: Path, stored: str, open_it: Callable[[str], Loaded]
) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("linear_2.weight"))
    tensors[key] = tensors[key][:-1].clone()
    if stored == "lost":
        del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"linear_2\.weight"):
        open_it(str(copied))


@OPENERS
def test_architectures_of_no_family_are_bad_input(copied: Path, open_it: Callable[[str], Loaded]) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))
    with pytest.raises(BadInput, match="model_type 'blip' is not supported"):
        open_it(str(copied))


@OPENERS
def test_a_checkpoint_without_its_processor_is_bad_input(copied: Path, open_it: Callable[[str], Loaded]) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match="its processor does not load"):
        open_it(str(copied))


@OPENERS
@pytest.mark.parametrize("content", ["{", '{"model_type": "made_up"}'])
def test_a_broken_configuration_is_bad_input(copied: Path, content: str, open_it: Callable[[str], Loaded]) -> None:
    (copied / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"config\.json"):
        open_it(str(copied))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "no-such-owner/no-such-model"])
def test_models_that_are_nowhere_are_bad_input(name: str) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        locate(name)
