"""Any data as one table that carries its pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unsee.data.examples import PLACES, Example, ImageSource, UnlearnData
from unsee.data.pictures import FileImage, container
from unsee.data.rows import TableImage
from unsee.errors import BadInput
from unsee.progress import track
from unsee.storage import alone, replacing

GROUP_BYTES = 8 << 20  # of different pictures in a row group: what is in memory at once, here and for whoever reads
GROUP_ROWS = 1000
FORMAT = "unsee-table-1"  # in the file's metadata: `--overwrite` replaces nothing else


@alone
def export_data(data: UnlearnData, out: Path) -> dict[str, Any]:
    """Write all splits as one parquet file; `load_data` on it gives the same questions, answers and pixels.

    Pictures from files and tables keep their bytes; generated ones and HEIC become PNG. `datasets` reads the file as it
    is, with pictures as its `Image` feature.

    Args:
        out: a path that ends in `.parquet`; written under another name first.

    Returns:
        Path, numbers of rows and of different pictures, bytes.

    Raises:
        BadInput: another ending, or a picture that cannot be read.
    """
    if out.suffix != ".parquet":
        raise BadInput(f"--out {out}: expected a name that ends in .parquet")
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    rows = [(split, example) for split in PLACES for example in data.split(split)]
    schema = _schema(any(example.others for _, example in rows))
    pictures = len({image for _, example in rows for image in example.images})
    out.parent.mkdir(parents=True, exist_ok=True)
    # Repeated pictures are stored once per row group: that is what the dictionary is for.
    packed = {"compression": "zstd", "dictionary_pagesize_limit": 2 * GROUP_BYTES}
    with replacing(out) as partial, ParquetWriter(partial, schema, **packed) as file:
        for group in _groups(data, track(rows, "writing rows")):
            file.write_table(Table.from_pylist(group, schema))
    return {"table": str(out), "rows": len(rows), "pictures": pictures, "bytes": out.stat().st_size}


def _schema(several: bool) -> Any:
    from datasets import Features, Image, List, Value

    text = Value("string")
    columns = dict.fromkeys(("question", "answer", "subject", "probe", "split"), text)
    pictures = {"image": Image(), **({"images": List(Image())} if several else {})}
    schema = Features({**pictures, **columns, "choices": List(text), "key": text, "name": text}).arrow_schema
    return schema.with_metadata({**schema.metadata, "unsee": FORMAT})


def _groups(data: UnlearnData, rows: Iterable[tuple[str, Example]]) -> Iterator[list[dict[str, Any]]]:
    """Rows as cells, in groups that fit into memory."""
    group: list[dict[str, Any]] = []
    encoded: dict[ImageSource, dict[str, Any]] = {}
    for split, e in rows:
        pictures = [encoded[i] if i in encoded else encoded.setdefault(i, _encoded(i)) for i in e.images]
        row: dict[str, Any] = {"image": pictures[0] if pictures else None, "images": pictures[1:]}
        row |= {"question": e.question, "answer": e.answer, "subject": e.subject, "probe": e.probe, "split": split}
        row |= {"choices": list(e.choices), "key": e.key, "name": data.names.get(e.subject)}
        group.append(row)
        if len(group) >= GROUP_ROWS or sum(len(picture["bytes"]) for picture in encoded.values()) >= GROUP_BYTES:
            yield group
            group, encoded = [], {}
    if group:
        yield group


def _encoded(image: ImageSource) -> dict[str, Any]:
    if isinstance(image, FileImage | TableImage) and container(content := image.encoded()) != "HEIF":
        return {"bytes": content, "path": os.path.basename(image.label)}
    buffer = io.BytesIO()
    image.open().save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{image.label}.png"}
