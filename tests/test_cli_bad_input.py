"""Bad input on the command line: one line that says what, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import EVALUATE, MOMENTS, UNLEARN, copied, lose_a_tensor, made_here, photos_and_model, run, tree
from huggingface_hub.errors import LocalEntryNotFoundError

original = pytest.fixture(scope="module")(photos_and_model)
place = pytest.fixture(copied)


def edit(path: str, **change: Any) -> None:
    content = json.loads(Path(path).read_text())
    for key, value in change.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    Path(path).write_text(json.dumps(content))


def cut(path: str) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:60])


BAD: dict[str, tuple[Any, ...]] = {  # what is bad -> command, what the line says, a preparation if it needs one
    "data that is not there": (UNLEARN.replace("--data photos", "--data nowhere"), r"--data 'nowhere': no such data"),
    "data folder that is not there": (
        EVALUATE.replace("--data photos", "--data folder:nowhere"),
        r"nowhere: cannot be read as a folder",
    ),
    "data parameter": (EVALUATE.replace("photos", "people:faces=3"), r"unknown key 'faces'"),
    "empty subject folder": (UNLEARN, r"photos/dora: no pictures", lambda: Path("photos/dora").mkdir()),
    "truncated picture": (
        UNLEARN,
        r"photos/anna/3\.png: cannot be read as a picture",
        lambda: cut("photos/anna/3.png"),
    ),
    "truncated picture in an evaluation": (EVALUATE, r"photos/anna/3\.png", lambda: cut("photos/anna/3.png")),
    "unknown subject": (UNLEARN.replace("anna", "zoe"), r"unknown subject 'zoe'"),
    "unknown subject in an evaluation": (EVALUATE.replace("anna", "zoe"), r"unknown subject 'zoe'"),
    "forget everything": (UNLEARN.replace("anna", "anna,bob-dylan,cleo_m"), r"--forget names all 3 subjects"),
    "forget everything by number": (UNLEARN.replace("anna", "first:3"), r"--forget first:3.*1 to 2"),
    "forget nothing": (UNLEARN.replace("anna", ","), r"no subject given"),
    "no list of subjects": (UNLEARN.replace("anna", "@list.txt"), r"@list\.txt: cannot read"),
    "list of subjects that is no text": (
        UNLEARN.replace("anna", "@list.txt"),
        r"@list\.txt: cannot read",
        lambda: Path("list.txt").write_bytes(b"\xff\xfe"),
    ),
    "unknown method": (UNLEARN.replace("cvf", "magic"), r"--method magic: unknown.*nscvf"),
    "unknown setting": (UNLEARN + " --set speed=3", r"--set speed: no such setting.*learning_rate"),
    "setting of the wrong type": (UNLEARN.replace("=3", "=many"), r"steps=many: expected a whole"),
    "setting that is no number": (
        UNLEARN + " --set forget_weight=hard",
        r"--set forget_weight=hard: expected a number",
    ),
    "setting without a value": (UNLEARN + " --set forget_weight", r"--set forget_weight: expected key=value"),
    "setting given twice": (UNLEARN + " --set steps=4", r"--set steps: given twice"),
    "setting outside its list": (
        UNLEARN.replace("cvf", "ga") + " --set scope=eyes",
        r"scope=eyes: expected one of visual",
    ),
    "unknown rule": (
        UNLEARN.replace("cvf", "nscvf") + " --set rule=magic",
        r"--set rule=magic: expected one of energy",
    ),
    "no steps": (UNLEARN.replace("=3", "=-1"), r"--set steps=-1: expected at least 0"),
    "negative learning rate": (UNLEARN + " --set learning_rate=-1", r"--set learning_rate=-1\.0: expected more than 0"),
    "weight adapted every 0 steps": (UNLEARN + " --set adapt_every=0", r"--set adapt_every=0: expected at least 1"),
    "empty batches": (UNLEARN.replace("cvf", "ga") + " --set batch=0", r"--set batch=0: expected at least 1"),
    "threshold above 1": (
        UNLEARN.replace("cvf", "nscvf") + " --set rule=energy --set threshold=2",
        r"--set .*threshold.2\.0.*expected 0 \.\.\. 1",
    ),
    "soft rule without a threshold": (
        UNLEARN.replace("cvf", "nscvf") + " --set rule=soft --set threshold=0",
        r"--set .*threshold.0\.0.*expected more than 0",
    ),
    "share above 1": (UNLEARN + " --set nearest_share=2", r"--set nearest_share=2\.0: expected .*at most 1"),
    "unknown positives": (
        UNLEARN + " --set positives=somebody",
        r"--set positives=somebody: expected one of unknowing",
    ),
    "steps for a method that takes none": (
        UNLEARN.replace("cvf", "nscvf-direct"),
        r"--set steps: no such setting.*strength_high",
    ),
    "positives without hidden states, compared in blocks": (
        UNLEARN + " --set positives=centre --set features=blocks",
        r"--set features=blocks: positives=centre has no hidden states; use tokens",
    ),
    "blocks the model does not have": (UNLEARN + " --set last_blocks=99", r"last_blocks=99: expected 0 to 2"),
    "unlearned model exists": (UNLEARN, r"--out out: exists.*--overwrite", lambda: Path("out").mkdir()),
    "results exist": (EVALUATE, r"--out out: exists.*--overwrite", lambda: Path("out").mkdir()),
    "moments exist": (MOMENTS, r"--out out: exists.*--overwrite", lambda: Path("out").write_text("kept")),
    "pocket model exists": ("pocket build --data people --out mine", r"--out mine: exists.*--overwrite"),
    "demo exists": ("demo --out mine", r"--out mine: exists.*--overwrite"),
    "--overwrite of a folder that is not unsee's": (
        UNLEARN.replace("--out out", "--out mine --overwrite"),
        r"--out mine: was not written by unsee",
    ),
    "--overwrite of the pictures": (
        UNLEARN.replace("--out out", "--out photos --overwrite"),
        r"--out photos: was not written by unsee",
    ),
    "--overwrite of the model being read": (
        UNLEARN.replace("--out out", "--out model --overwrite"),
        r"--out model: was not written by unsee",
    ),
    "--overwrite of the model being read, made by unsee": (
        UNLEARN.replace("--out out", "--out model --overwrite"),
        r"--out model: would replace model, which this command reads",
        lambda: made_here("model"),
    ),
    "--overwrite of a folder around the pictures": (
        UNLEARN.replace("--data photos", "--data folder:mine/photos,group=(.)").replace("out out", "out mine")
        + " --overwrite",
        r"--out mine: would replace folder:mine/photos,group=\(\.\), which this command reads",
        lambda: [shutil.copytree("photos", "mine/photos"), made_here("mine")],
    ),
    "--overwrite of a file by a model": (
        UNLEARN.replace("--out out", "--out mine/letter.txt --overwrite"),
        r"--out mine/letter\.txt: is a file; expected a folder",
    ),
    "--overwrite of a folder by moments": (
        MOMENTS.replace("--out out", "--out mine --overwrite"),
        r"--out mine: is a folder; expected a file",
    ),
    "--overwrite of a letter by moments": (
        MOMENTS.replace("--out out", "--out mine/letter.txt --overwrite"),
        r"--out mine/letter\.txt: was not written by unsee",
    ),
    "--overwrite of the model's weights by moments": (
        MOMENTS.replace("--out out", "--out model/model.safetensors --overwrite"),
        r"--out model/model\.safetensors: was not written by unsee",
    ),
    "--overwrite of somebody's pictures by results": (
        EVALUATE.replace("--out out", "--out mine --overwrite"),
        r"--out mine: was not written by unsee",
        lambda: [shutil.copytree("photos/anna", "mine/pictures"), made_here("mine/models/vanilla")],
    ),
    "--overwrite of somebody's folder by a demo": (
        "demo --out mine --overwrite",
        r"--out mine: was not written by unsee",
    ),
    "--resume in somebody's folder": (
        EVALUATE.replace("--out out", "--out mine --resume"),
        r"--out mine: was not written by unsee",
    ),
    "--resume in a file": (
        EVALUATE.replace("--out out", "--out mine/letter.txt --resume"),
        r"--out mine/letter\.txt: is a file; expected a folder",
    ),
    "output inside a file": (UNLEARN.replace("--out out", "--out mine/letter.txt/out"), r"is a file"),
    "model that is not there": (UNLEARN.replace("--model model", "--model nowhere"), r"nowhere.*no such"),
    "model name that the hub refuses": (
        UNLEARN.replace("--model model", "--model owner/na--me"),
        r"--model owner/na--me: no such folder, and the hub did not give it",
    ),
    "second model that is not there": (EVALUATE + " --model other=./nowhere", r"\./nowhere: no such"),
    "second model without config.json": (EVALUATE + " --model other=mine", r"mine: no config\.json"),
    "model without config.json": (UNLEARN, r"model: no config\.json", lambda: Path("model/config.json").unlink()),
    "evaluated model without config.json": (EVALUATE, r"no config\.json", lambda: Path("model/config.json").unlink()),
    "config.json that is no JSON": (
        UNLEARN,
        r"model/config\.json: not a usable configuration",
        lambda: cut("model/config.json"),
    ),
    "config.json of no known type": (
        UNLEARN,
        r"model/config\.json: model_type 'novel' is not supported; supported: llava",
        lambda: edit("model/config.json", model_type="novel"),
    ),
    "model without weights": (UNLEARN, r"no model\.safetensors", lambda: Path("model/model.safetensors").unlink()),
    "model with truncated weights": (UNLEARN, r"not a readable safetensors", lambda: cut("model/model.safetensors")),
    "model without processor": (
        UNLEARN,
        r"its processor does not load",
        lambda: [path.unlink() for path in Path("model").glob("*token*")],
    ),
    "model of another family": (
        UNLEARN,
        r"model_type 'vipllava' is not supported",
        lambda: edit("model/config.json", model_type="vipllava"),
    ),
    "model of another shape": (
        UNLEARN,
        r"has shape \[48, 16\], config\.json asks \[64, 16\]",
        lambda: edit("model/config.json", vision_config={"intermediate_size": 64}),
    ),
    "evaluated model of another shape": (
        EVALUATE,
        r"model: its weights hold nothing that fits '.*fc.*' as config\.json has it",
        lambda: edit("model/config.json", vision_config={"intermediate_size": 64}),
    ),
    "evaluated model without one of its tensors": (
        EVALUATE,
        r"model: its weights hold nothing that fits 'model\.multi_modal_projector\.linear_1\.bias'",
        lose_a_tensor,
    ),
    "role without path": (EVALUATE.replace("vanilla=model", "model"), r"--model model: expected ROLE=PATH"),
    "path without role": (EVALUATE.replace("vanilla=model", "=model"), r"expected ROLE=PATH"),
    "role that is no word": (EVALUATE.replace("vanilla", "../x"), r"a role is letters"),
    "role given twice": (EVALUATE + " --model vanilla=model", r"role 'vanilla' is given twice"),
    "moments for a method without": (
        UNLEARN + " --moments nowhere",
        r"--moments nowhere: method cvf does not use stored statistics",
    ),
    "moments that are not there": (
        UNLEARN.replace("cvf", "nscvf") + " --moments nowhere",
        r"--moments nowhere: no such file",
    ),
    "moments that are a letter": (
        UNLEARN.replace("cvf", "nscvf") + " --moments mine/letter.txt",
        r"letter\.txt: not a readable safetensors file",
    ),
    "moments that are a model": (
        UNLEARN.replace("cvf", "nscvf") + " --moments model/model.safetensors",
        r"not a moments file",
    ),
    "moments of inputs for a null space of gradients": (
        UNLEARN.replace("cvf", "nscvf") + " --moments mine/letter.txt --set basis=gradients_stacked",
        r"--moments mine/letter\.txt: holds moments of layer inputs, not of gradients_stacked",
    ),
    "moments of blocks the model does not have": (MOMENTS + " --last-blocks 99", r"last_blocks=99: expected 0 to 2"),
    "moments without anybody": (MOMENTS + " --without zoe", r"--without: unknown subject 'zoe'"),
    "unknown family": ("demo --family gpt --out out", r"--family gpt: no pocket model.*llava"),
    "report on an empty folder": ("report photos", r"photos/results\.json: not found"),
    "report on nothing": ("report nowhere", r"nowhere/results\.json: not found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    command, says, *prepare = BAD[case]
    for one in prepare:
        one()
    before = tree(place)
    assert run(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("unsee: ")
    assert re.search(says, printed.err)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--frobnicate", r"No such option: --frobnicate.*`unsee --help`"),
        ("frobnicate", r"No such command 'frobnicate'.*`unsee --help`"),
        ("unlearn", r"Missing option '--model'.*`unsee unlearn --help`"),
        (UNLEARN + " --frobnicate", r"No such option: --frobnicate.*`unsee unlearn --help`"),
        (UNLEARN + " --seed ten", r"'--seed'.*`unsee unlearn --help`"),
        (UNLEARN + " --seed -1", r"'--seed'.*0"),
        (UNLEARN + " --seed 99999999999999999999", r"'--seed'.*4294967295"),  # more than torch can hold
        (EVALUATE + " --jobs 0", r"'--jobs'.*1.*`unsee evaluate --help`"),
        ("compare --out out --jobs two", r"'--jobs'.*`unsee compare --help`"),
        ("study search --grid g.toml --out out --jobs -1", r"'--jobs'.*1.*`unsee study search --help`"),
        (EVALUATE.replace("evaluate", "attack relearn") + " --jobs 1.5", r"'--jobs'.*`unsee attack relearn --help`"),
        ("evaluate --data photos --forget anna --out out", r"Missing option '--model'.*`unsee evaluate --help`"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, says: str
) -> None:
    before = tree(place)
    assert run(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"unsee: .*{says}.*\n", printed.err)
    assert tree(place) == before


@pytest.mark.parametrize("command", ["", "moments", "pocket"])
def test_a_group_of_commands_alone_shows_its_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"Usage: unsee {command}".strip())
    assert "Commands:" in printed.err


def test_a_model_the_hub_does_not_give_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    before = tree(place)
    assert run(UNLEARN.replace("--model model", "--model owner/name")) == 2
    assert re.fullmatch(r"unsee: --model owner/name: no such folder, .*\(offline\)\n", capsys.readouterr().err)
    assert tree(place) == before
