"""What every comparison needs: its cases with their models, one unlearning run, and the files it leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsee.checkpoint.folder import MANIFEST, CheckpointFolder, read_manifest, write_json
from unsee.data.examples import SPLITS, ImageSource, UnlearnData
from unsee.data.sources import load_data
from unsee.editing.request import EditRequest
from unsee.editing.unlearn import unlearn
from unsee.errors import BadInput, GateFailed
from unsee.lab.build import build_pocket
from unsee.methods import Method
from unsee.models.loading import locate, open_checkpoint
from unsee.parallel import side_by_side
from unsee.reporting.comparison import page
from unsee.settings import of_method
from unsee.storage import replace_text
from unsee.study.grid import Case, GridPocket
from unsee.table import table_text

GRID = "grid.json"  # stands in every directory that a comparison writes
LEFT = (  # what else it leaves beside folders
    "sequence*",
    "compare.*",
    "compare-summary.csv",
    "ablation.*",
    "search.*",
    "audit.*",
    "verdict.toml",
)


@dataclass(frozen=True)
class Resolved:
    """A case whose data is loaded and whose request is known by name."""

    case: Case
    data: UnlearnData
    subjects: tuple[str, ...]
    family: str

    def __getstate__(self) -> dict[str, Any]:
        """What is sent to another process: there every picture is opened anew for its fingerprint, before any clock
        starts, as it was here.
        """
        return {**vars(self), "data": dataclasses.replace(self.data)}

    @property
    def about(self) -> dict[str, Any]:
        """What identifies it in a results file."""
        wanted = self.case.forget
        return {
            "name": self.case.name,
            "family": self.family,
            "data": self.data.source,
            "request": wanted if isinstance(wanted, str) else " and ".join(wanted),
            "forget": list(self.subjects),
        }


def resolve(case: Case) -> Resolved:
    """Load the data and look at the given models, before anything is written.

    Raises:
        BadInput: names the case.
    """
    try:
        data = load_data(case.data)
        subjects = data.choose(case.forget, case.draw)
        for split in ("train", "test"):
            if not data.split(split).of(subjects).pictured:
                raise BadInput(f"{data.source}: the forget set has no {split} pictures")
        kinds = [
            model.family if isinstance(model, GridPocket) else open_checkpoint(model)[2].name
            for model in (case.vanilla, *case.golds)
        ]
    except BadInput as error:
        raise BadInput(f"case '{case.name}': {error}") from error
    return Resolved(case, data, subjects, kinds[0])


def keep_apart(reported: Sequence[Resolved], searched: Sequence[Resolved]) -> None:
    """Refuse to report on people on whom settings were chosen.

    Raises:
        BadInput: names both cases.
    """
    shown = {case.case.name: _pictures(case.data) for case in searched}
    for case in reported:
        own = _pictures(case.data)
        for other in searched:
            if same_people(case.data.source, other.data.source) or own & shown[other.case.name]:
                raise BadInput(
                    f"case '{case.case.name}': {case.data.source} shows people that settings are searched on "
                    f"('{other.case.name}'); report on others, e.g. people of another seed"
                )


def same_people(one: str, other: str) -> bool:
    """Whether two DATA arguments name the same source; generated people are the same where their seed is."""
    seeds = [re.search(r"^(?:people|world):(?:.*,)?seed=(\d+)", source) for source in (one, other)]
    return one == other or (all(seeds) and len({found[1] for found in seeds if found}) == 1)


def _pictures(data: UnlearnData) -> set[ImageSource]:
    return {image for split in SPLITS for e in data.split(split) for image in e.images}


def stand_ready(case: Resolved, folder: Path) -> tuple[str, list[str]]:
    """Paths of the vanilla and of the gold models; those of the lab are put into `folder` unless they stand there."""
    for model, without, out in _of_the_lab(case, folder):
        if not (out / MANIFEST).is_file():
            build_pocket(model.family, case.data, model.seed, out, without)
        made = read_manifest(out)
        wanted = (model.family, model.seed, case.data.fingerprint, sorted(without))
        if (made["family"], made["seed"], made["data"]["fingerprint"], sorted(made["without_images_of"])) != wanted:
            raise BadInput(f"{out}: made for another grid; choose another --out, or add --overwrite")

    def path_of(model: str | GridPocket, role: str) -> str:
        return model if isinstance(model, str) else str(folder / role)

    golds = [path_of(gold, gold_role(i)) for i, gold in enumerate(case.case.golds)]
    return path_of(case.case.vanilla, "vanilla"), golds


def build_models(cases: Mapping[Path, Resolved], jobs: int) -> None:
    """Put the models of the lab into these folders unless they stand there, `jobs` at a time.

    Models of one family and seed are built one after the other: the first leaves the others its base in the cache, and
    may be one of them.
    """
    groups: dict[str, list[tuple[Resolved, GridPocket, Sequence[str], Path]]] = {}
    for folder, case in cases.items():
        for model, without, out in _of_the_lab(case, folder):
            if not (out / MANIFEST).is_file():
                group = groups.setdefault(f"{model.family} with seed {model.seed}", [])
                group.append((case, model, without, out))
    for _ in side_by_side("building models", _build_all, {name: (group,) for name, group in groups.items()}, jobs):
        pass


def _build_all(wanted: Sequence[tuple[Resolved, GridPocket, Sequence[str], Path]]) -> tuple[()]:
    for case, model, without, out in wanted:
        build_pocket(model.family, case.data, model.seed, out, without)
    return ()


def _of_the_lab(case: Resolved, folder: Path) -> Iterator[tuple[GridPocket, tuple[str, ...], Path]]:
    """The models of a case that the lab makes, whose pictures each must not see, and where it belongs."""
    for i, gold in enumerate(case.case.golds):
        if isinstance(gold, GridPocket):
            yield gold, case.subjects, folder / gold_role(i)
    if isinstance(case.case.vanilla, GridPocket):
        yield case.case.vanilla, (), folder / "vanilla"


def gold_role(number: int) -> str:
    return "gold" if number == 0 else f"gold-{number + 1}"


def unlearned(case: Resolved, vanilla: str, method: Method, seed: int, out: Path, link: bool = False) -> str | None:
    """Make the unlearned model unless it stands there; returns why there is none, if the run broke down.

    Raises:
        BadInput: the model that stands there was made otherwise.
    """
    made = read_manifest(out)
    if not made:
        try:
            unlearn(vanilla, EditRequest(case.data, case.subjects, method, seed, gate=False, link=link), out)
        except GateFailed as problem:
            return str(problem)
        return None
    wanted = {"method": method.name, "settings": as_json(method), "seed": seed, "forget": list(case.subjects)}
    found = {**made, "settings": of_method(made.get("method"), made.get("settings"))}
    same = all(found.get(key) == value for key, value in wanted.items())
    same = same and made["data"]["fingerprint"] == case.data.fingerprint
    if not same or made["base"]["sha256"] != CheckpointFolder(locate(vanilla)).hashes():
        raise BadInput(f"{out}: made by another grid or from another model; choose another --out, or add --overwrite")
    return None


def as_json(method: Method) -> dict[str, Any]:
    """Its settings as a file has them."""
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(method)))  # type: ignore[call-overload]
    return settings


# Files ----------------------------------------------------------------------------------------------------------------


def begin(out: Path, grid: object, resume: bool) -> None:
    """Make the directory of a comparison, with its grid (a dataclass); without `resume` older results are removed."""
    if not resume:
        for left in ("cases", "figures", "runs"):
            if (out / left).is_dir():
                shutil.rmtree(out / left)
        for pattern in LEFT:
            for file in out.glob(pattern):
                file.unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / GRID, json.loads(json.dumps(grid, default=_plain)))


def _plain(value: Any) -> Any:
    return {"method": value.name, **vars(value)} if isinstance(value, Method) else vars(value)


def kept(file: Path) -> dict[str, Any] | None:
    """What an earlier run wrote; files appear whole or not at all."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def digest(about: Mapping[str, Any]) -> str:
    """A file name for everything that shapes a run."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def write_results(out: Path, stem: str, results: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """`STEM.json`, `STEM.csv`, `STEM.html` and `figures/`."""
    text, drawings = page(results)
    (out / "figures").mkdir(exist_ok=True)
    for drawing in drawings:
        replace_text(out / "figures" / f"{drawing.name}.svg", drawing.svg)
    replace_text(out / f"{stem}.html", text)
    replace_text(out / f"{stem}.csv", table_text(rows))
    write_json(out / f"{stem}.json", results)
