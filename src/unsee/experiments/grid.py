"""Grid files: which models, requests, seeds and methods a comparison runs over. Strict TOML: nothing is ignored."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from unsee.config import configured
from unsee.errors import BadInput
from unsee.lab.build import POCKETS
from unsee.methods import METHODS, FeatureMethod, Method

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NEXT_GOLD = 1000  # added to the model seed from one gold model to the next
LEVELS = (0.5, 0.2)
CHECKPOINTS = (10, 20, 40, 60, 80, 120, 160, 200)
DRAWN = 10  # seed of `random:N` where models are given by path, as for every command
REQUIRED = object()
T = TypeVar("T")


@dataclass(frozen=True)
class Pocket:
    """A model of the lab, still to be built (or taken from the cache)."""

    family: str
    seed: int


@dataclass(frozen=True)
class Case:
    """One vanilla model with one request, and the gold models of that request.

    Attributes:
        name: also that of its folder.
        data, forget: as on the command line; `draw` is the seed of `random:N`.
        vanilla, golds: paths, or models of the lab.
    """

    name: str
    data: str
    forget: str
    draw: int
    vanilla: str | Pocket
    golds: tuple[str | Pocket, ...]


@dataclass(frozen=True)
class Arm:
    """A method with its settings under a name of its own.

    Attributes:
        learning_rates: to be tried one by one (`ablate`); none: the setting of the method (`compare`).
    """

    name: str
    method: Method
    learning_rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class CompareGrid:
    """Every arm on every case with every seed of the unlearning run."""

    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Table:
    """Arms that are read side by side."""

    name: str
    title: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class AblationGrid:
    """Arms compared at matched forgetting.

    Attributes:
        checkpoints: steps after which is measured; the last step of a run always is.
        levels: shares of right answers about the forget set at which arms are compared, beside that of gold.
        forget_pictures, retain_pictures: measured pictures per subject, for validation and test each.
    """

    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    tables: tuple[Table, ...]
    checkpoints: tuple[int, ...] = CHECKPOINTS
    levels: tuple[float, ...] = LEVELS
    forget_pictures: int = 12
    retain_pictures: int = 3


# Reading --------------------------------------------------------------------------------------------------------------


class Keys:
    """One table of a grid file, read key by key; `done` refuses what nobody asked for."""

    def __init__(self, values: Any, where: str) -> None:
        self._left, self._known, self.where = dict(mapping(values, where)), list[str](), where

    def take(self, key: str, parse: Callable[[Any, str], T], default: Any = REQUIRED) -> T:
        """The value of `key` by `parse`, which gets the value and where it stands; absent, the default if one is given.

        Raises:
            BadInput: absent without a default, or `parse` refuses it.
        """
        self._known.append(key)
        if key in self._left:
            return parse(self._left.pop(key), f"{self.where}{key}")
        if default is REQUIRED:
            raise BadInput(f"{self.where}{key}: missing; add it")
        return cast(T, default)

    def done(self) -> None:
        for key in self._left:
            raise BadInput(f"{self.where}{key}: no such key; expected one of {', '.join(self._known)}")


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: expected a text in quotes, found {value!r}")
    return value


def name(value: Any, where: str) -> str:
    """Names become file names."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value):
        raise BadInput(f"{where}: expected letters, digits, '-' and '_', found {value!r}")
    return value


def whole(value: Any, where: str, low: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**32:
        raise BadInput(f"{where}: expected a whole number, {low} or more, found {value!r}")
    return value


def at_least_one(value: Any, where: str) -> int:
    return whole(value, where, 1)


def positive(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadInput(f"{where}: expected a number above zero, found {value!r}")
    return float(value)


def fraction(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise BadInput(f"{where}: expected a fraction between 0 and 1, found {value!r}")
    return float(value)


def several(parse: Callable[[Any, str], T], empty: bool = False) -> Callable[[Any, str], tuple[T, ...]]:
    """A list whose items differ, each by `parse`."""

    def read(value: Any, where: str) -> tuple[T, ...]:
        if not isinstance(value, list) or not (value or empty):
            raise BadInput(f"{where}: expected a list{'' if empty else ' of at least one'}, found {value!r}")
        items = tuple(parse(item, f"{where}[{i}]") for i, item in enumerate(value))
        for i, item in enumerate(items):
            if item in items[:i]:
                raise BadInput(f"{where}[{i}]: {item!r} is given twice; keep one")
        return items

    return read


def tables(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise BadInput(f"{where}: expected tables, each under [[{where.split(': ')[-1]}]]")
    return tuple(value)


def as_it_is(value: Any, where: str) -> Any:
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected a table of keys, found {value!r}")
    return value


def read_compare(path: Path) -> CompareGrid:
    """The grid of `unsee compare`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    return _compare(_open(path))


def _compare(keys: Keys) -> CompareGrid:
    cases = _cases(keys)
    seeds = keys.take("seeds", several(whole), (0,))
    given = keys.take("arms", tables)
    keys.done()
    arms = tuple(_arm(Keys(item, f"{keys.where}arms[{i}]."), sweeps=False) for i, item in enumerate(given))
    return CompareGrid(cases, seeds, _apart(arms, keys.where))


def compare_grid(
    file: Path | None,
    models: Mapping[str, str],
    data: str | None,
    forget: str | None,
    methods: str | None,
    seeds: str | None,
) -> CompareGrid:
    """The grid of `unsee compare`, from a file or from the options themselves.

    Args:
        models: role -> path; `vanilla`, and `gold`, `gold-2`, ... if there are any.

    Raises:
        BadInput: an option too many or too few, or one that cannot be used.
    """
    options = {"--model": models, "--data": data, "--forget": forget, "--methods": methods, "--seeds": seeds}
    if file is not None:
        if given := [option for option, value in options.items() if value]:
            raise BadInput(f"--grid {file}: stands for {given[0]} too; leave one of them out")
        return read_compare(file)
    for option, value in options.items():
        if not value and option != "--seeds":
            raise BadInput(f"{option}: missing; give --model, --data, --forget and --methods, or --grid FILE")
    others = [role for role in models if role != "vanilla" and not re.fullmatch("gold(-[0-9]+)?", role)]
    if others or "vanilla" not in models:
        found = f"found {others[0]}" if others else "vanilla is missing"
        raise BadInput(f"--model: expected vanilla=PATH, and gold=PATH, gold-2=PATH, ... if known; {found}")
    values: dict[str, Any] = {
        "seeds": [_number(part) for part in (seeds or "0").split(",")],
        "arms": [{"method": part.strip()} for part in (methods or "").split(",")],
        "given": [
            {
                "data": data,
                "forget": forget,
                "vanilla": models["vanilla"],
                "golds": [path for role, path in models.items() if role != "vanilla"],
            }
        ],
    }
    return _compare(Keys(values, "--"))


def _number(part: str) -> Any:
    return int(part) if re.fullmatch("[0-9]{1,10}", part.strip()) else part


def read_ablation(path: Path) -> AblationGrid:
    """The grid of `unsee ablate`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = _open(path)
    cases = _cases(keys)
    default = AblationGrid(cases, (0,), ())
    seeds = keys.take("seeds", several(whole), default.seeds)
    checkpoints = keys.take("checkpoints", several(at_least_one), default.checkpoints)
    levels = keys.take("levels", several(fraction, empty=True), default.levels)
    forget = keys.take("forget_pictures", at_least_one, default.forget_pictures)
    retain = keys.take("retain_pictures", at_least_one, default.retain_pictures)
    given = keys.take("tables", tables)
    keys.done()
    made = tuple(_table(Keys(item, f"{keys.where}tables[{i}].")) for i, item in enumerate(given))
    return AblationGrid(cases, seeds, _apart(made, keys.where), tuple(sorted(checkpoints)), levels, forget, retain)


def _open(path: Path) -> Keys:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--grid {path}: cannot be read ({error.strerror}); expected a TOML file") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise BadInput(f"--grid {path}: not a TOML file ({error})") from error
    return Keys(content, f"{path}: ")


Named = TypeVar("Named", Case, Arm, Table)


def _apart(items: tuple[Named, ...], where: str) -> tuple[Named, ...]:
    names = [item.name for item in items]
    for i, one in enumerate(names):
        if one in names[:i]:
            raise BadInput(f"{where}the name '{one}' is given twice; give one of them another `name`")
    return items


def _table(keys: Keys) -> Table:
    own, title = keys.take("name", name), keys.take("title", text)
    common = keys.take("settings", mapping, {})
    rates: Any = keys.take("learning_rates", as_it_is, [])
    given = keys.take("arms", tables)
    keys.done()
    arms = []
    for i, item in enumerate(given):
        where = f"{keys.where}arms[{i}]."
        own_settings = mapping(mapping(item, where).get("settings", {}), f"{where}settings")
        arm = {"learning_rates": rates, **item, "settings": {**common, **own_settings}}
        arms.append(_arm(Keys(arm, where), sweeps=True))
    return Table(own, title, _apart(tuple(arms), keys.where))


def _arm(keys: Keys, sweeps: bool) -> Arm:
    method = keys.take("method", text)
    own = keys.take("name", name, method)
    settings = keys.take("settings", mapping, {})
    rates = keys.take("learning_rates", several(positive)) if sweeps else ()
    keys.done()
    if method not in METHODS:
        raise BadInput(f"{keys.where}method: '{method}' is unknown; expected one of {', '.join(METHODS)}")
    if sweeps and not (
        issubclass(METHODS[method], FeatureMethod) and "learning_rate" in get_type_hints(METHODS[method])
    ):
        raise BadInput(f"{keys.where}method: '{method}' does not train visual features by steps; leave it to `compare`")
    if sweeps and "learning_rate" in settings:
        raise BadInput(f"{keys.where}settings.learning_rate: stands in learning_rates; remove it here")
    return Arm(own, _method(method, settings, f"{keys.where}settings"), rates)


def _method(method: str, settings: Mapping[str, Any], where: str) -> Method:
    """The method with settings as TOML has them, each of the type that the setting has."""
    try:
        made: Method = configured(METHODS[method], [f"{key}={_as_text(value)}" for key, value in settings.items()])
    except BadInput as error:
        raise BadInput(f"{where}: {str(error).removeprefix('--set ')}") from error
    for key, value in settings.items():
        found = getattr(made, key)
        if isinstance(value, str) != isinstance(found, str) or isinstance(value, bool) != isinstance(found, bool):
            raise BadInput(f"{where}.{key}: expected a value like {found!r}, found {value!r}")
    return made


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cases(keys: Keys) -> tuple[Case, ...]:
    built = keys.take("models", mapping, {})
    given = keys.take("given", tables, ())
    cases = _built(Keys(built, f"{keys.where}models.")) if built else []
    cases += [_given(Keys(item, f"{keys.where}given[{i}].")) for i, item in enumerate(given)]
    if not cases:
        raise BadInput(f"{keys.where}models: missing; add [models] to build them, or [[given]] with paths")
    return _apart(tuple(cases), keys.where)


def _built(keys: Keys) -> list[Case]:
    """All combinations of family, people seed, model seed and request."""
    families = keys.take("families", several(text))
    data = keys.take("data", text)
    people = keys.take("people", several(whole))
    model_seeds = keys.take("model_seeds", several(whole), ())
    forget = keys.take("forget", several(text))
    golds = keys.take("golds", whole, 1)
    keys.done()
    for family in families:
        if family not in POCKETS:
            raise BadInput(f"{keys.where}families: no pocket model of '{family}'; expected one of {', '.join(POCKETS)}")
    if "{people}" not in data:
        raise BadInput(f"{keys.where}data: expected '{{people}}' where the seed of the people stands, found {data!r}")
    return [
        Case(
            name=f"{family}-people{seed}-model{model}-{re.sub('[^A-Za-z0-9]+', '-', request).strip('-')[:40]}",
            data=data.replace("{people}", str(seed)),
            forget=request,
            draw=seed,
            vanilla=Pocket(family, model),
            golds=tuple(Pocket(family, model + i * NEXT_GOLD) for i in range(golds)),
        )
        for family, seed in itertools.product(families, people)
        for model in model_seeds or (seed,)
        for request in forget
    ]


def _given(keys: Keys) -> Case:
    vanilla = keys.take("vanilla", text)
    case = Case(
        name=keys.take("name", name, re.sub("[^A-Za-z0-9]+", "-", Path(vanilla).name).strip("-") or "given"),
        data=keys.take("data", text),
        forget=keys.take("forget", text),
        draw=DRAWN,
        vanilla=vanilla,
        golds=keys.take("golds", several(text, empty=True), ()),
    )
    keys.done()
    return case


def reads(grid: CompareGrid | AblationGrid) -> list[str]:
    """The data and the models that are there already."""
    given = [case.data for case in grid.cases]
    return given + [m for case in grid.cases for m in (case.vanilla, *case.golds) if isinstance(m, str)]
