"""Write measured numbers into the pages that show them, so that no page says anything else than what was measured.

    python tools/measured.py            # rewrite
    python tools/measured.py --check    # exit code 1 if a page is not what the measurements say

`docs/measured/STUDY.csv` is a `compare-summary.csv` as `unsee compare` left it. A page asks for a table between two
comments: `<!-- measured: STUDY -->` or `<!-- measured: method NAME -->` (its rows in every study), and
`<!-- end of measured -->`. Percentages; differences are percentage points: mean ± standard deviation over runs, the
worst in brackets; one run has no spread.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unsee.methods import METHODS
from unsee.reporting.compared import CONTESTED
from unsee.reporting.compared import standing as in_words
from unsee.study.summary import standing

STUDIES = {  # what stands in docs/measured, and on whom it was measured
    "flagship": "people 20–24",
    "systems": "people 10–12",
    "baselines": "people 10",
    "signs": "4 of 43 signs",
}
FAMILIES = {"llava": "LLaVA", "qwen2_vl": "Qwen2-VL"}
BLOCK = re.compile(r"(<!-- measured: (?P<wanted>.+?) -->\n).*?(<!-- end of measured -->)", re.DOTALL)
HEAD = (
    "model, forget set",
    "method",
    "forget (95 %)",
    "distance to gold",
    "retain (95 %)",
    "retain drop",
    "attributes drop",
    "text drop",
    "attack: gain − gold's",
    "total",
    "edit (s)",
    "best or equal",
    "given",
)
NOTHING = "Not measured at its best settings yet."
SPREADS = ("distance", "drop.retain", "drop.attributes", "drop.text", "gain_over_gold", "total")
Row = Mapping[str, str]


def table(rows: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """Lines of a table of rows and the studies they are from."""
    yield "| " + " | ".join(HEAD) + " |"
    yield "|---|---|" + "--:|" * (len(HEAD) - 4) + "---|---|"
    for study, row in rows:
        cells = [f"{FAMILIES[row['family']]}, {STUDIES[study]}", row["arm"]]
        distance, retain, *drops = (spread(row, name) for name in SPREADS)
        cells += [share(row, "forget.test"), distance, share(row, "retain.test"), retain, *drops]
        seconds = row["seconds"] and f"{float(row['seconds']):.0f}"
        failed = f" ({row['failed']} of {row['runs']} broke down)" if row["failed"] not in ("", "0") else ""
        given = ", ".join(METHODS[row["arm"]]().inputs) or "nothing" if row["arm"] in METHODS else ""
        place = "one run" if row["runs"] == "1" and row["distance.mean"] else row["standing"]
        yield "| " + " | ".join([*cells, seconds + failed, place, given]) + " |"


def share(row: Row, name: str) -> str:
    """A share with the ends of its interval."""
    if not row[name]:
        return ""
    low, high = (100 * float(row[f"{name}.{end}"]) for end in ("low", "high"))
    return f"{100 * float(row[name]):.1f} ({low:.0f}–{high:.0f})"


def spread(row: Row, name: str) -> str:
    """A mean; where there are several runs with their standard deviation and the worst of them."""
    if not row[f"{name}.mean"]:
        return ""
    mean, worst = (f"{100 * float(row[f'{name}.{part}']):.1f}" for part in ("mean", "worst"))
    text = f"{mean} ± {100 * float(row[f'{name}.sd']):.1f} ({worst})" if row[f"{name}.sd"] else mean
    return text.replace("-", "−")


def measured(docs: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of every study; of each, in words, in what it is best or equal to the best."""
    studies = {}
    for study in STUDIES:
        with (docs / "measured" / f"{study}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        places: list[dict[str, str]] = [{} for _ in rows]
        for name in (name for name in CONTESTED if f"{name}.sd" in rows[0]):  # of older files seconds have no spread
            for family in {row["family"] for row in rows}:
                own = {str(i): _known(row, name) for i, row in enumerate(rows) if row["family"] == family}
                for i, place in standing(own).items():
                    places[int(i)][name] = place
        studies[study] = [{**row, "standing": in_words({"standing": of})} for row, of in zip(rows, places, strict=True)]
    return studies


def _known(row: Row, name: str) -> dict[str, float | None]:
    return {part: float(row[f"{name}.{part}"]) if row[f"{name}.{part}"] else None for part in ("mean", "sd")}


def page(text: str, studies: Mapping[str, Sequence[Row]]) -> str:
    """A page with its tables as measured."""

    def filled(block: re.Match[str]) -> str:
        kind, _, name = block["wanted"].partition(" ")
        if kind == "method":
            rows = [(study, row) for study, rows in studies.items() for row in rows if row["arm"] == name]
        else:
            rows = [(kind, row) for row in sorted(studies[kind], key=lambda row: [*FAMILIES].index(row["family"]))]
        shown = table(rows) if rows else [NOTHING]
        return "\n".join([block[1].rstrip(), "", *shown, "", block[3]])

    return BLOCK.sub(filled, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which pages differ")
    check = parser.parse_args().check
    docs = Path(__file__).resolve().parents[1] / "docs"
    studies = measured(docs)
    stale = []
    for path in sorted(docs.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        wanted = page(text, studies)
        if wanted != text:
            stale.append(path)
            if not check:
                path.write_text(wanted, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'not what docs/measured says; run tools/measured.py' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
