"""The README.md of an edited checkpoint: where it comes from, what was changed, what is claimed and what is not.

It may be published, so it names neither the forgotten subjects nor a place on anybody's disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unsee.table import markdown_table

CARD = "README.md"
TAGS = ("unsee", "unlearning")
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^license\w*:.*\n(?:[ \t-].*\n)*", re.MULTILINE)  # license, license_name, license_link
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

CLAIMS = """\
Claimed: every tensor not named above is byte-identical to the base's.

Not claimed: that nothing about the forgotten subjects is left in the weights. Names and facts in text are kept on
purpose, relearning and other attacks are not covered by this card, and whoever holds the base can put its vision tower
back. How well this checkpoint forgets and what it keeps is for an evaluation to say; this card gives no legal opinion.
"""

UNCHANGED = """\
### What was changed

No tensor. If the method is one of instructions, these stand in the chat templates, with the names they speak of.
"""


def model_card(manifest: Mapping[str, Any], base: Path) -> str:
    """The text of the card.

    Args:
        manifest: of an edit, as `editing.unlearn` makes it.
        base: folder of the edited checkpoint; its card's licence and body are carried along.
    """
    old = (base / CARD).read_text(encoding="utf-8", errors="replace") if (base / CARD).is_file() else ""
    front = _FRONT_MATTER.match(old)
    body = old[front.end() if front else 0 :].strip()
    sections = [
        _header(manifest, "".join(_LICENCE.findall(front[1])) if front else ""),
        _origin(manifest),
        _table("Settings", ("setting", "value"), manifest["settings"].items()),
        _table("Versions", ("package", "version"), manifest["versions"].items()),
        _changes(manifest["changed"]) if manifest["changed"] else UNCHANGED,
        f"### What is claimed\n\n{CLAIMS}",
    ]
    if body:
        sections.append(f"---\n\nThe card of the base follows, as it was.\n\n{body}\n")
    return "\n".join(sections)


def _header(manifest: Mapping[str, Any], licence: str) -> str:
    model = manifest["base"]["model"]
    origin = f"base_model: {json.dumps(model)}\n" if _is_hub_id(model) else ""  # the hub refuses a path here
    tags = "".join(f"- {tag}\n" for tag in TAGS)
    return f"---\n{origin}library_name: transformers\ntags:\n{tags}{licence}---\n"


def _origin(manifest: Mapping[str, Any]) -> str:
    base, count = manifest["base"], len(manifest["forget"])
    model = base["model"]
    lines = [
        f"# Edited by unsee: {count} {'subject' if count == 1 else 'subjects'} forgotten\n",
        f"- Base: {f'`{model}`' if _is_hub_id(model) else 'a local folder'}, with these files (SHA-256):",
        *(f"  - `{name}` {digest}" for name, digest in sorted(base["sha256"].items())),
        f"- Method: {manifest['method']}, {manifest['paper']}; seed {manifest['seed']}",
        f"- Made: {manifest['created']}",
    ]
    earlier = [f"{a['method']} ({a['created']})" for a in base["lineage"] if a["created"]]
    if earlier:
        lines.append(f"- Before that: {', then '.join(earlier)}")
    return "\n".join(lines) + "\n"


def _is_hub_id(model: str) -> bool:
    return bool(_HUB_ID.fullmatch(model)) and not Path(model).exists()


def _table(title: str, heads: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    return f"### {title}\n\n" + markdown_table(heads, ((name, str(value)) for name, value in rows))


def _changes(keys: Sequence[str]) -> str:
    """Changed tensors by module: the numbered block they are in, else their layer's parent."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        found = re.match(r"(.*\.\d+)\.(.+)", key) or re.match(r"(.+)\.(\w+\.\w+)", key)
        module, name = found.groups() if found else ("outside any module", key)
        groups.setdefault(module, []).append(name)
    lines = [f"- `{module}` ({len(names)}): {', '.join(names)}" for module, names in groups.items()]
    return f"### What was changed\n\n{len(keys)} tensors:\n\n" + "\n".join(lines) + "\n"
