"""Processors of others: what older versions of transformers left out is known from config.json; contradictions are
one line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NewCheckpoint
from relearning import SHORT

from unsee.attacks.probe import Probing, probe
from unsee.attacks.relearn_plan import AttackRequest
from unsee.attacks.relearn_run import relearn
from unsee.cli import main
from unsee.data.examples import UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.methods import METHODS
from unsee.models.batching import answer_loss
from unsee.models.loading import Loaded, load_model, load_visual

OPENERS = pytest.mark.parametrize("open_it", [load_model, load_visual])
SETTINGS, PICTURES = "processor_config.json", "preprocessor_config.json"
TOLD = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
LLAVAS = ("llava", "llava_next")

# What stands in processor_config.json on the hub, beside names of classes and tokens. None: no such file.
OLD: dict[str, dict[str, Any] | None] = {
    "transformers 4.37": None,
    "transformers 4.45": {"patch_size": None, "vision_feature_select_strategy": None},
    "transformers 4.49": dict.fromkeys(TOLD) | {"num_additional_image_tokens": 0},
    "no additional tokens": {"patch_size": ..., "vision_feature_select_strategy": "default"},
    "no additional tokens, saved again": {**dict.fromkeys(TOLD, ...), "num_additional_image_tokens": 0},
    "no strategy": {"patch_size": ..., "num_additional_image_tokens": 1},
    "all of it null": dict.fromkeys(TOLD),
}


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def as_in_2024(folder: Path, settings: dict[str, Any] | None) -> None:
    """Settings of pictures in a file of their own; of the rest those given, as they are where `...` stands."""
    whole = read(folder / SETTINGS)
    pictures = whole.pop("image_processor") | {"processor_class": whole["processor_class"]}
    (folder / PICTURES).write_text(json.dumps(pictures))
    (folder / SETTINGS).unlink()
    if settings is not None:
        kept = {name: whole[name] for name in whole if name not in TOLD}
        said = {name: whole[name] if value is ... else value for name, value in settings.items()}
        (folder / SETTINGS).write_text(json.dumps(kept | said))


def losses(folder: Path, people: UnlearnData) -> float:
    loaded = load_model(str(folder))
    batch = loaded.batcher.for_training(list(people.test.pictured)[:3])
    shown = (batch["input_ids"] == loaded.model.config.image_token_id).sum().item()
    with torch.no_grad():
        features = loaded.visual.features(loaded.batcher.images(list(people.test.pictures)[:1]))
        loss = answer_loss(loaded.model, batch).item()
    assert shown % len(features.states) == 0 or loaded.family.name == "llava_next"  # there newlines are added
    return loss


@pytest.mark.parametrize("family", LLAVAS)
@pytest.mark.parametrize("old", OLD)
def test_what_a_processor_does_not_say_is_taken_from_the_configuration(
    new_checkpoint: NewCheckpoint, people: UnlearnData, family: str, old: str
) -> None:
    folder = new_checkpoint(family=family)
    expected = losses(folder, people)
    as_in_2024(folder, OLD[old])
    assert losses(folder, people) == expected
    processor = load_visual(str(folder)).batcher.processor
    vision = read(folder / "config.json")["vision_config"]
    assert [getattr(processor, name) for name in TOLD] == [vision["patch_size"], 1, "default"]


def test_a_first_token_that_is_read_is_counted(new_checkpoint: NewCheckpoint, people: UnlearnData) -> None:
    """The other strategy: `full` keeps the class token."""
    folder = new_checkpoint(family="llava", layer=-2, strategy="full")
    expected = losses(folder, people)
    as_in_2024(folder, None)
    assert losses(folder, people) == expected


def test_a_processor_that_counts_right_in_its_own_way_is_left_as_it_is(
    new_checkpoint: NewCheckpoint, people: UnlearnData
) -> None:
    """`full` without additional tokens is as many as `default` with one: some fine-tunes have it so."""
    folder = new_checkpoint()
    expected = losses(folder, people)
    as_in_2024(folder, {"patch_size": ..., "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"})
    assert losses(folder, people) == expected
    assert load_model(str(folder)).batcher.processor.vision_feature_select_strategy == "full"


@pytest.mark.parametrize("old", ["transformers 4.37", "transformers 4.49"])
@pytest.mark.parametrize("family", LLAVAS)
def test_everything_runs_on_such_a_checkpoint_and_its_files_are_handed_on(
    new_checkpoint: NewCheckpoint, people: UnlearnData, tmp_path: Path, family: str, old: str
) -> None:
    folder = new_checkpoint(family=family)
    as_in_2024(folder, OLD[old])
    source, one, two = str(folder), people.subjects[:1], people.subjects[:2]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for name in ("ga", "npo", "cvf"):
        unlearn(source, EditRequest(people, one, METHODS[name](steps=1), 0, gate=False), tmp_path / name)
        written = {file.name for file in (tmp_path / name).iterdir()}
        assert before.keys() <= written
        for file in (PICTURES, SETTINGS, "config.json"):
            assert before.get(file) == ((tmp_path / name / file).read_bytes() if file in written else None)
    relearn({"vanilla": source, "gold": source}, AttackRequest(people, two, SHORT, 0), tmp_path / "relearnt")
    probe({"vanilla": source}, people, one, Probing(pictures=2, test_pictures=2, others=3), 0, tmp_path / "probed")
    evaluate(EvaluationRequest({"vanilla": source}, people, one), tmp_path / "evaluated")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


# What contradicts the configuration -----------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], object]


def settings(**change: Any) -> Change:
    return lambda whole: whole.update(change)


def pictures(**change: Any) -> Change:
    return lambda whole: whole["image_processor"].update(change)


WRONG: dict[str, tuple[str, Change, str]] = {  # what -> family, change of processor_config.json, what the line says
    "another patch size": ("llava", settings(patch_size=6), "patch_size is 6 … config.json is 12; correct one"),
    "another patch size, NeXT": ("llava_next", settings(patch_size=12), "patch_size is 12 … config.json is 6"),
    "a class token too many": (
        "llava",
        settings(num_additional_image_tokens=2),
        "num_additional_image_tokens 2 … 'default' counts +1 … 'default' has +0; set them to 1 and 'default'",
    ),
    "the other strategy": (
        "llava",
        settings(vision_feature_select_strategy="full"),
        "num_additional_image_tokens 1 … 'full' counts +1 … 'default' has +0; set them to 1 and 'default'",
    ),
    "the other strategy, NeXT": (
        "llava_next",
        settings(vision_feature_select_strategy="full"),
        "'full' counts +1 … set them to 1 and 'default'",
    ),
    "a crop for another tower": (
        "llava",
        pictures(crop_size={"height": 36, "width": 36}, size={"shortest_edge": 36}),
        "one of 36 x 36 … sees 24 x 24; set size and crop_size to 24",
    ),
    "no crop": ("llava", pictures(do_center_crop=False), "one of 36 x 24 … sees 24 x 24 … do_center_crop to true"),
    "a crop for another tower, NeXT": (
        "llava_next",
        pictures(crop_size={"height": 12, "width": 12}, size={"shortest_edge": 12}),
        "one of 12 x 12 … sees 24 x 24",
    ),
    "other tiles": (
        "llava_next",
        pictures(image_grid_pinpoints=[[24, 48]]),
        "image_grid_pinpoints are [[24, 48]] … config.json are [[24, 48], [48, 24], [48, 48]]",
    ),
    "a deviation of zero": ("llava", pictures(image_std=[0.5, 0.0, 0.5]), "image_std is [0.5, 0.0, 0.5] … above 0"),
    "a deviation of zero, Qwen": ("qwen2_vl", pictures(image_std=[0, 0, 0]), "image_std is [0, 0, 0] … above 0"),
    "patches of another size": ("qwen2_vl", pictures(patch_size=4), "patch_size is 4 … config.json is 8; correct one"),
    "other merging": ("qwen2_vl", pictures(merge_size=1), "merge_size is 1 … spatial_merge_size … is 2; correct one"),
    "other merging, 2.5": ("qwen2_5_vl", pictures(merge_size=4), "merge_size is 4 … spatial_merge_size … is 2"),
    "other frames": ("qwen2_5_vl", pictures(temporal_patch_size=1), "temporal_patch_size is 1 … config.json is 2"),
}


@OPENERS
@pytest.mark.parametrize("case", WRONG)
def test_a_processor_that_contradicts_the_configuration_is_one_line(
    new_checkpoint: NewCheckpoint, case: str, open_it: Callable[[str], Loaded]
) -> None:
    family, change, says = WRONG[case]
    folder = new_checkpoint(family=family)
    open_it(str(folder))  # the control
    whole = read(folder / SETTINGS)
    change(whole)
    (folder / SETTINGS).write_text(json.dumps(whole))
    with pytest.raises(BadInput) as refused:
        open_it(str(folder))
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(f"{folder / SETTINGS}: ")
    assert re.search(".*".join(map(re.escape, says.split(" … "))), line), line


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_file_that_is_wrong_is_named_where_pictures_have_their_own(
    new_checkpoint: NewCheckpoint, family: str
) -> None:
    folder = new_checkpoint(family=family)
    as_in_2024(folder, None if family == "qwen2_vl" else dict.fromkeys(TOLD, ...))
    load_visual(str(folder))
    own = read(folder / PICTURES)
    own |= {"merge_size": 1, "crop_size": {"height": 12, "width": 12}}
    (folder / PICTURES).write_text(json.dumps(own))
    with pytest.raises(BadInput, match=rf"{PICTURES}: .*(merge_size is 1|one of 12 x 12)"):
        load_visual(str(folder))


@pytest.mark.parametrize("name", ["patch_size", "merge_size", "temporal_patch_size"])
def test_qwen_takes_what_is_null_from_the_configuration(
    new_checkpoint: NewCheckpoint, people: UnlearnData, name: str
) -> None:
    folder = new_checkpoint(family="qwen2_vl")
    expected = losses(folder, people)
    whole = read(folder / SETTINGS)
    whole["image_processor"][name] = None
    (folder / SETTINGS).write_text(json.dumps(whole))
    assert losses(folder, people) == expected


# Files that are not there ---------------------------------------------------------------------------------------------

LOST = {  # lost -> what is named
    (PICTURES,): "preprocessor_config.json; copy",
    ("tokenizer.json",): "tokenizer.json; copy",
    ("tokenizer.json", "tokenizer_config.json"): "tokenizer.json and tokenizer_config.json; copy",
    (PICTURES, SETTINGS): "preprocessor_config.json; copy",
    (PICTURES, SETTINGS, "tokenizer.json", "tokenizer_config.json"): (
        "preprocessor_config.json and tokenizer.json and tokenizer_config.json; copy"
    ),
    ("tokenizer_config.json",): "tokenizer_config.json; copy",
}


@OPENERS
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("lost", LOST, ids=" ".join)
def test_files_that_are_missing_are_named_and_where_to_take_them_from(
    new_checkpoint: NewCheckpoint, family: str, lost: tuple[str, ...], open_it: Callable[[str], Loaded]
) -> None:
    folder = new_checkpoint(family=family)
    as_in_2024(folder, None if family == "qwen2_vl" else dict.fromkeys(TOLD, ...))
    open_it(str(folder))  # the control
    for name in lost:
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(BadInput) as refused:
        open_it(str(folder))
    line = str(refused.value)
    assert line.startswith(f"{folder}: ")
    assert f"does not load, it lacks {LOST[lost]} what is missing from the base, the model it was made from" in line
    assert "again" not in line


def test_the_command_line_says_it_in_one_line(
    new_checkpoint: NewCheckpoint, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = new_checkpoint()
    (folder / "tokenizer.json").unlink()
    command = f"unlearn --model {folder} --data people:count=4,train=3,validation=2,test=2 --forget first:1 --method ga"
    with pytest.raises(SystemExit) as ending:
        main([*command.split(), "--out", str(tmp_path / "out")])
    assert ending.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
