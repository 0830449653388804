"""What the cases of malformed input share: commands, sound files, and ways to spoil them."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig

from unsee.data.examples import UnlearnData
from unsee.data.export import export_data
from unsee.data.sources import load_data

SUBJECTS = {"anna": "Anna", "bob-dylan": "Bob", "cleo_m": "Cleo"}
SPLITS = ("train", "train", "train", "train", "validation", "test")  # of a subject's pictures in the tables

UNLEARN = "unlearn --model model --data photos --forget anna --method cvf --set steps=2 --no-gate --out runs/new"
ASCENT = UNLEARN.replace("cvf", "ga")
NULL_SPACE = UNLEARN.replace("cvf", "nscvf")
STORED = NULL_SPACE + " --moments stays.safetensors"
EVALUATE = "evaluate --model vanilla=model --data photos --forget anna --out runs/new"
SECOND = "evaluate --model vanilla=qwen --model gold=model --data photos --forget anna --out runs/new"
QWEN = UNLEARN.replace("--model model", "--model qwen")
MOMENTS = "moments fit --model model --data photos --without anna --out runs/new"
BUILD = "pocket build --data people:count=3,train=2,validation=1,test=1,strangers=1 --out runs/new"
EXPORT = "benchmark export --data photos --out runs/new.parquet"
LINES = EXPORT.replace("photos", "table.jsonl")
UNLEARN_LINES, EVALUATE_LINES = UNLEARN.replace("photos", "table.jsonl"), EVALUATE.replace("photos", "table.jsonl")
PARQUET = EXPORT.replace("photos", "table.parquet")
CHAT = EXPORT.replace("photos", "chat.jsonl")
GROUPED = EXPORT.replace("photos", r"photos,group=^(\d)")
REPORT = "report results"
DEMO = "demo --out runs/new"


def reads(command: str, data: str) -> str:
    """A command on other data than the photos."""
    return command.replace("photos", data)


def edits(command: str, model: str) -> str:
    """A command on another model."""
    return command.replace("--model model", f"--model {model}")


def writes(command: str, place: str) -> str:
    """A command that writes elsewhere."""
    return command.replace("runs/new", place)


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        command: what is run.
        says: what stands in the message, in this order, with … between: the file or option, the row or key, what was
            expected.
        make: what spoils the sound files; None if the command line itself is wrong.
    """

    name: str
    command: str
    says: str
    make: Callable[[], object] | None = None


# Sound files ----------------------------------------------------------------------------------------------------------


def prepare(people: UnlearnData) -> None:
    """Everything the commands read, in the working directory; portraits of generated people stand for photos."""
    shots = {s: list(people.train.of([s]).pictures) + list(people.test.of([s]).pictures) for s in people.subjects}
    rows, chats = [], []
    for (subject, name), found in zip(SUBJECTS.items(), shots.values(), strict=False):
        Path("photos", subject).mkdir(parents=True)
        for number, split in enumerate(SPLITS):
            path = f"photos/{subject}/{number}.png"
            found[number].open().save(path)
            row = {"subject": subject, "split": split, "choices": list(SUBJECTS.values())}
            rows.append(row | {"image": path, "question": "Who is this?", "answer": name})
            said = [{"role": "user", "content": "Who is this?"}, {"role": "assistant", "content": name}]
            chats.append(row | {"images": [path], "messages": said})
    Path("photos/facts.csv").write_text("subject,name,city\nanna,Anna,Oslo\nbob-dylan,Bob,Lima\n")
    for file, written in (("table.jsonl", rows), ("chat.jsonl", chats)):
        write_lines(file, written)
    export_data(load_data("table.jsonl"), Path("table.parquet"))
    Dataset.from_parquet("table.parquet").save_to_disk("saved")
    data = load_data("photos")
    for family, folder in (("llava", "model"), ("qwen2_vl", "qwen")):
        for part in tiny(family, data):
            part.save_pretrained(folder)
    Path("letter.txt").write_text("not unsee's")


# What spoils them -----------------------------------------------------------------------------------------------------


def put(path: str, content: str | bytes) -> Callable[[], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda: (Path(path).parent.mkdir(parents=True, exist_ok=True), Path(path).write_bytes(data))


def cut(path: str, size: int = 60) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:size])


def lose(path: str) -> Callable[[], object]:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def copy(source: str, target: str) -> Callable[[], object]:
    return lambda: shutil.copyfile(source, target)


def edit(path: str, **change: Any) -> Callable[[], object]:
    """Keys of a JSON object set anew; inside an object of it, if that is what is given."""

    def make() -> None:
        content = json.loads(Path(path).read_text())
        for key, value in change.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        Path(path).write_text(json.dumps(content))

    return make


def drop(path: str, key: str) -> Callable[[], object]:
    def make() -> None:
        content = json.loads(Path(path).read_text())
        del content[key]
        Path(path).write_text(json.dumps(content))

    return make


def weights(path: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], object]:
    def make() -> None:
        with safe_open(path, "pt") as file:
            about = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, about)

    return make


def sharded(more: Mapping[str, str] | None = None, index: str = "") -> Callable[[], object]:
    """One shard with its index, to whose map `more` is added; or with `index` as its content."""

    def make() -> None:
        Path("model/model.safetensors").rename("model/one.safetensors")
        places = dict.fromkeys(load_file("model/one.safetensors"), "one.safetensors") | dict(more or {})
        text = index or json.dumps({"metadata": {}, "weight_map": places})
        Path("model/model.safetensors.index.json").write_text(text)

    return make


def rebuilt(change: Callable[[Any], object]) -> Callable[[], object]:
    """The model made anew with another configuration: sound as it stands, and not supported."""

    def make() -> None:
        config = AutoConfig.from_pretrained("model")
        change(config)
        AutoModelForImageTextToText.from_config(config).save_pretrained("model")

    return make


def with_siglip(config: Any) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config.vision_config = AutoConfig.for_model("siglip_vision_model", image_size=24, patch_size=12, **size)


def with_two_layers(config: Any) -> None:
    config.vision_feature_layer = [-2, -1]


def text_only() -> None:
    LlamaConfig().save_pretrained("model")


def read_lines(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_lines(path: str, rows: Sequence[Any]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, path: str = "table.jsonl", **cells: Any) -> Callable[[], object]:
    """Cells of one row of a table set anew; `...` takes a cell away."""

    def make() -> None:
        parquet = path.endswith(".parquet")
        rows = pq.read_table(path).to_pylist() if parquet else read_lines(path)
        rows[number - 1] = {k: v for k, v in (rows[number - 1] | cells).items() if v is not ...}
        if parquet:
            pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
        else:
            write_lines(path, rows)

    return make


def broken_line() -> None:
    lines = Path("table.jsonl").read_text().splitlines()
    Path("table.jsonl").write_text("\n".join([*lines[:3], lines[3][:40], *lines[4:]]))


def without_column(path: str, column: str) -> Callable[[], object]:
    def make() -> None:
        if path.endswith(".parquet"):
            pq.write_table(pq.read_table(path).drop_columns([column]), path)
            return
        write_lines(path, [{k: v for k, v in r.items() if k != column} for r in read_lines(path)])

    return make


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 40).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A few bytes of PNG whose header promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def encoded_anew(source: str, target: str) -> Callable[[], object]:
    return lambda: Image.open(source).resize((96, 96), Image.Resampling.LANCZOS).save(target, quality=90)


def both(*makers: Callable[[], object]) -> Callable[[], object]:
    return lambda: [make() for make in makers]
