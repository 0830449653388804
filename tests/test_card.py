"""The model card: a lineage anyone may read, and nobody's name or disk in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from unsee.checkpoint.card import CARD, TAGS, model_card
from unsee.checkpoint.folder import CheckpointFolder, lineage, read_manifest
from unsee.data.examples import UnlearnData
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.methods.nscvf import NullSpaceConstrainedForgetting

MANIFEST: dict[str, Any] = {
    "method": "nscvf",
    "paper": "arXiv 2605.05909",
    "seed": 10,
    "settings": {"steps": 400, "rule": "energy"},
    "forget": ["ada-lovelace", "grace-hopper"],
    "data": {"source": "folder:/home/me/ada-lovelace", "fingerprint": "f00"},
    "command": "unsee unlearn --forget ada-lovelace,grace-hopper",
    "base": {
        "model": "owner/model-7b",
        "path": "/home/me/without-ada-lovelace",
        "sha256": {"model.safetensors": "abc123", "config.json": "def456"},
        "lineage": [],
    },
    "changed": [
        "model.multi_modal_projector.linear_1.weight",
        "model.vision_tower.encoder.layers.21.mlp.fc1.weight",
        "model.vision_tower.encoder.layers.21.self_attn.q_proj.weight",
        "model.vision_tower.encoder.layers.22.mlp.fc1.weight",
        "lm_head.weight",
    ],
    "created": "2026-01-02T03:04:05+00:00",
    "versions": {"unsee": "0.1.0", "torch": "2.13.0"},
}


def manifest(**base: Any) -> dict[str, Any]:
    return {**MANIFEST, "base": {**MANIFEST["base"], **base}}


def test_card_says_where_the_model_comes_from_and_what_was_done(tmp_path: Path) -> None:
    text = model_card(MANIFEST, tmp_path)
    for value in ("owner/model-7b", "abc123", "def456", "nscvf", "2605.05909", "2026-01-02", "steps | 400", "2.13.0"):
        assert value in text
    assert "2 subjects forgotten" in text
    assert "5 tensors" in text
    assert "- `model.vision_tower.encoder.layers.21` (2): mlp.fc1.weight, self_attn.q_proj.weight" in text
    assert "- `model.multi_modal_projector` (1): linear_1.weight" in text
    assert "lm_head.weight" in text
    assert "Not claimed: that nothing about the forgotten subjects is left" in text


def test_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    about = ModelCard(model_card(MANIFEST, tmp_path)).data.to_dict()
    assert about == {"base_model": "owner/model-7b", "library_name": "transformers", "tags": list(TAGS)}


@pytest.mark.parametrize("model", ["/home/me/without-ada-lovelace", "./models/ada-lovelace", "ada-lovelace"])
def test_card_names_neither_subjects_nor_places(tmp_path: Path, model: str) -> None:
    text = model_card(manifest(model=model), tmp_path)
    for word in ("ada", "lovelace", "grace", "/home", "me/"):
        assert word not in text.lower()
    assert "a local folder" in text
    assert "base_model" not in ModelCard(text).data.to_dict()  # the hub refuses a path


def test_a_local_folder_is_no_hub_id_however_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "models/ada" in model_card(manifest(model="models/ada"), tmp_path)  # the control
    (tmp_path / "models" / "ada").mkdir(parents=True)
    assert "models/ada" not in model_card(manifest(model="models/ada"), tmp_path)


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: apache-2.0\nlanguage: en\n", {"license": "apache-2.0"}),
        (
            "tags:\n- vision\nlicense: other\nlicense_name: llama2\nlicense_link: LICENSE.txt\ndatasets:\n- x\n",
            {"license": "other", "license_name": "llama2", "license_link": "LICENSE.txt"},
        ),
        ("license:\n- mit\n- apache-2.0\ntags:\n- vision\n", {"license": ["mit", "apache-2.0"]}),
        ("language: en\n", {}),
    ],
)
def test_licence_of_the_base_is_carried_along_and_its_body_kept(
    tmp_path: Path, front: str, expected: dict[str, Any]
) -> None:
    (tmp_path / CARD).write_text(f"---\n{front}---\n\n# The base\n\nWhat it is.\n\n---\n\nlicense: in the text\n")
    text = model_card(MANIFEST, tmp_path)
    about = ModelCard(text).data.to_dict()
    assert {key: value for key, value in about.items() if key.startswith("license")} == expected
    assert about["tags"] == list(TAGS)
    assert text.endswith("# The base\n\nWhat it is.\n\n---\n\nlicense: in the text\n")
    assert text.index("forgotten") < text.index("# The base")


@pytest.mark.parametrize("old", ["# Only a body\n", "---\nlicense: never closed\n", "", "\ufeff# Umlaut ä\r\n"])
def test_a_card_without_front_matter_is_all_body(tmp_path: Path, old: str) -> None:
    (tmp_path / CARD).write_bytes(old.encode())
    text = model_card(MANIFEST, tmp_path)
    assert text.rstrip().endswith(old.strip() or "no legal opinion.")
    assert "license" not in ModelCard(text).data.to_dict()


def test_an_edit_of_an_edit_tells_the_whole_line(checkpoint: Path, people: UnlearnData, tmp_path: Path) -> None:
    method = NullSpaceConstrainedForgetting(steps=2, learning_rate=5e-4, forget_pictures=3, retain_pictures=6)
    first, second = people.subjects[:2]
    one = unlearn(str(checkpoint), EditRequest(people, [first], method, 0, gate=False), tmp_path / "one")
    two = unlearn(str(tmp_path / "one"), EditRequest(people, [second], method, 0, gate=False), tmp_path / "two")
    assert one["base"]["lineage"] == []
    base = CheckpointFolder(checkpoint).hashes()
    assert two["base"]["lineage"] == [
        {"method": None, "created": None, "sha256": base},
        {"method": "nscvf", "created": one["created"], "sha256": CheckpointFolder(tmp_path / "one").hashes()},
    ]
    assert lineage(read_manifest(tmp_path / "two"))[2]["sha256"] == two["sha256"]

    text = (tmp_path / "two" / CARD).read_text()
    assert f"Before that: nscvf ({one['created']})" in text
    assert text.count("1 subject forgotten") == 2, "the card of the first edit follows"
    assert one["base"]["sha256"]["model.safetensors"] in text
    for subject in (first, second):
        assert people.names[subject] not in text
        assert subject not in text
    assert "Before that" not in (tmp_path / "one" / CARD).read_text()
