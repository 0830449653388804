"""Grid files: which models, requests, seeds and methods a comparison runs over. Strict TOML: nothing is ignored."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_type_hints

from unsee.attacks.relearn_plan import Relearning
from unsee.errors import BadInput
from unsee.evaluation.verdict import is_role
from unsee.lab.build import POCKETS
from unsee.methods import METHODS, FeatureMethod, Method
from unsee.settings import configured, named_method
from unsee.strict_toml import (
    Keys,
    as_it_is,
    at_least_one,
    fraction,
    mapping,
    name,
    not_negative,
    open_toml,
    positive,
    several,
    tables,
    text,
    whole,
)
from unsee.study.summary import EQUAL, DistanceWeights

NEXT_GOLD = 1000  # added to the model seed from one gold model to the next
LEVELS = (0.5, 0.2)
CHECKPOINTS = (10, 20, 40, 60, 80, 120, 160, 200)
Request = str | tuple[str, ...]  # SUBJECTS: one argument, or several together
DRAWN = 10  # seed of `random:N` where models are given by path, as for every command


@dataclass(frozen=True)
class GridPocket:
    """A model of the lab, still to be built (or taken from the cache)."""

    family: str
    seed: int


@dataclass(frozen=True)
class Case:
    """One vanilla model with one request, and the gold models of that request.

    Attributes:
        name: also that of its folder.
        data, forget: as on the command line; `draw` is the seed of `random:N` and of the attacks.
        vanilla, golds: paths, or models of the lab.
    """

    name: str
    data: str
    forget: Request
    draw: int
    vanilla: str | GridPocket
    golds: tuple[str | GridPocket, ...]


@dataclass(frozen=True)
class Arm:
    """A method with its settings under a name of its own.

    Attributes:
        learning_rates: to be tried one by one (`ablate`); none: the setting of the method (`compare`).
        searched: the method with every combination of settings that `search` tries, in the order of the file; none:
            nothing is searched, the settings stand.
    """

    name: str
    method: Method
    learning_rates: tuple[float, ...] = ()
    searched: tuple[Method, ...] = ()

    @property
    def tries(self) -> tuple[Method, ...]:
        """What `search` runs."""
        return self.searched or (self.method,)


@dataclass(frozen=True)
class Search:
    """Where and how long settings are searched; every method gets the same.

    Attributes:
        cases: models and people that no report is about, each with gold models.
        seeds: of the unlearning runs.
        seconds: one edit may take no longer; a try that does is never chosen.
        tries: so many combinations of settings per method at most.
        pictures: test pictures asked about per subject.
    """

    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    seconds: float
    tries: int
    pictures: int = 12


@dataclass(frozen=True)
class CompareGrid:
    """Every arm on every case with every seed of the unlearning run.

    Attributes:
        weights: of the parts of the total.
        relearning: the attack on every model; None: none.
        search: how `unsee study search` finds the settings of the arms; None: it cannot.
    """

    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    weights: DistanceWeights = EQUAL
    relearning: Relearning | None = None
    search: Search | None = None

    @property
    def every_case(self) -> tuple[Case, ...]:
        """Those reported on, and those searched on."""
        return self.cases + (self.search.cases if self.search is not None else ())


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


def read_compare(path: Path) -> CompareGrid:
    """The grid of `unsee compare` and of `unsee study search`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    return _compare(open_toml(path, "--grid"))


def _compare(keys: Keys) -> CompareGrid:
    cases = cases_in(keys)
    seeds = keys.take("seeds", several(whole), (0,))
    weights = keys.take("weights", _weights, EQUAL)
    relearning = keys.take("relearn", _relearning, None)
    search = keys.take("search", _search, None)
    given = keys.take("arms", tables)
    keys.done()
    made = (arm_in(Keys(item, f"{keys.where}arms[{i}]."), sweeps=False) for i, item in enumerate(given))
    arms = named_apart(tuple(made), keys.where)
    for i, arm in enumerate(arms):
        if arm.searched and search is None:
            raise BadInput(f"{keys.where}arms[{i}].search: needs a table [search] that says on whom; add it")
        if search is not None and len(arm.tries) > search.tries:
            raise BadInput(
                f"{keys.where}arms[{i}].search: {len(arm.tries)} combinations, search.tries allows {search.tries}; "
                "shorten a list"
            )
    return CompareGrid(cases, seeds, arms, weights, relearning, search)


def _weights(value: Any, where: str) -> DistanceWeights:
    keys = Keys(value, f"{where}.")
    given = {f.name: keys.take(f.name, not_negative, f.default) for f in dataclasses.fields(DistanceWeights)}
    keys.done()
    return DistanceWeights(**given)


def _relearning(value: Any, where: str) -> Relearning | None:
    """`true` for the attack as it is, or a table of its settings."""
    if isinstance(value, bool):
        return Relearning() if value else None
    if not isinstance(value, dict):
        raise BadInput(f"{where}: expected true, false or a table of settings, found {value!r}")
    return configured(Relearning, value, f"{where}: ")


def _search(value: Any, where: str) -> Search:
    keys = Keys(value, f"{where}.")
    found = Search(
        cases=cases_in(keys),
        seeds=keys.take("seeds", several(whole), (0,)),
        seconds=keys.take("seconds", positive),
        tries=keys.take("tries", at_least_one),
        pictures=keys.take("pictures", at_least_one, 12),
    )
    keys.done()
    for case in found.cases:
        if not case.golds:
            raise BadInput(f"{where}: '{case.name}' has no gold model; settings are judged against one, so add `golds`")
    return found


def compare_grid(
    file: Path | None,
    models: Mapping[str, str],
    data: str | None,
    forget: str | Sequence[str] | None,
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
    others = [role for role in models if role != "vanilla" and not is_role(role, "gold")]
    if others or "vanilla" not in models:
        found = f"found {others[0]}" if others else "vanilla is missing"
        raise BadInput(f"--model: expected vanilla=PATH, and gold=PATH, gold-2=PATH, ... if known; {found}")
    values: dict[str, Any] = {
        "seeds": [_number(part) for part in (seeds or "0").split(",")],
        "arms": [{"method": part.strip()} for part in (methods or "").split(",")],
        "given": [
            {
                "data": data,
                "forget": _single(forget),
                "vanilla": models["vanilla"],
                "golds": [path for role, path in models.items() if role != "vanilla"],
            }
        ],
    }
    return _compare(Keys(values, "--"))


def _single(given: str | Sequence[str] | None) -> Any:
    """One argument by itself, several as a grid file has them."""
    return given if given is None or isinstance(given, str) else given[0] if len(given) == 1 else list(given)


def _number(part: str) -> Any:
    return int(part) if re.fullmatch("[0-9]{1,10}", part.strip()) else part


def read_ablation(path: Path) -> AblationGrid:
    """The grid of `unsee study ablate`.

    Raises:
        BadInput: names the file, the key, what was expected.
    """
    keys = open_toml(path, "--grid")
    cases = cases_in(keys)
    default = AblationGrid(cases, (0,), ())
    seeds = keys.take("seeds", several(whole), default.seeds)
    checkpoints = keys.take("checkpoints", several(at_least_one), default.checkpoints)
    levels = keys.take("levels", several(fraction, empty=True), default.levels)
    forget = keys.take("forget_pictures", at_least_one, default.forget_pictures)
    retain = keys.take("retain_pictures", at_least_one, default.retain_pictures)
    given = keys.take("tables", tables)
    keys.done()
    made = tuple(_table(Keys(item, f"{keys.where}tables[{i}].")) for i, item in enumerate(given))
    return AblationGrid(cases, seeds, named_apart(made, keys.where), tuple(sorted(checkpoints)), levels, forget, retain)


class HasName(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=HasName)


def named_apart(items: tuple[Named, ...], where: str) -> tuple[Named, ...]:
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
        arms.append(arm_in(Keys(arm, where), sweeps=True))
    return Table(own, title, named_apart(tuple(arms), keys.where))


def arm_in(keys: Keys, sweeps: bool) -> Arm:
    method = keys.take("method", text)
    own = keys.take("name", name, method)
    settings = keys.take("settings", mapping, {})
    rates = keys.take("learning_rates", several(positive)) if sweeps else ()
    lists = {} if sweeps else keys.take("search", mapping, {})
    keys.done()
    if method not in METHODS:
        raise BadInput(f"{keys.where}method: '{method}' is unknown; expected one of {', '.join(METHODS)}")
    if sweeps and not (
        issubclass(METHODS[method], FeatureMethod) and "learning_rate" in get_type_hints(METHODS[method])
    ):
        raise BadInput(f"{keys.where}method: '{method}' does not train visual features by steps; leave it to `compare`")
    if sweeps and "learning_rate" in settings:
        raise BadInput(f"{keys.where}settings.learning_rate: stands in learning_rates; remove it here")
    made = named_method(method, settings, f"{keys.where}settings: ")
    return Arm(own, made, rates, _combinations(method, settings, lists, f"{keys.where}search"))


def _combinations(method: str, settings: Mapping[str, Any], lists: Mapping[str, Any], where: str) -> tuple[Method, ...]:
    """Every combination of the values in `lists`, the last setting changing fastest."""
    values = [several(as_it_is)(given, f"{where}.{key}") for key, given in lists.items()]
    for key in lists:
        if key in settings:
            raise BadInput(f"{where}.{key}: stands in settings too; leave one of them out")
    if not lists:
        return ()
    return tuple(
        named_method(method, {**settings, **dict(zip(lists, chosen, strict=True))}, f"{where}: ")
        for chosen in itertools.product(*values)
    )


def cases_in(keys: Keys) -> tuple[Case, ...]:
    built = keys.take("models", mapping, {})
    given = keys.take("given", tables, ())
    cases = _built(Keys(built, f"{keys.where}models.")) if built else []
    cases += [_given(Keys(item, f"{keys.where}given[{i}].")) for i, item in enumerate(given)]
    if not cases:
        raise BadInput(f"{keys.where}models: missing; add [models] to build them, or [[given]] with paths")
    return named_apart(tuple(cases), keys.where)


def request(value: Any, where: str) -> Request:
    """SUBJECTS in quotes, or a list of such."""
    return several(text)(value, where) if isinstance(value, list) else text(value, where)


def _as_name(wanted: Request) -> str:
    said = wanted if isinstance(wanted, str) else "-".join(wanted)
    return re.sub("[^A-Za-z0-9]+", "-", said).strip("-")[:40]


def _built(keys: Keys) -> list[Case]:
    """All combinations of family, people seed, model seed and request."""
    families = keys.take("families", several(text))
    data = keys.take("data", text)
    people = keys.take("people", several(whole))
    model_seeds = keys.take("model_seeds", several(whole), ())
    forget = keys.take("forget", several(request))
    golds = keys.take("golds", whole, 1)
    keys.done()
    for family in families:
        if family not in POCKETS:
            raise BadInput(f"{keys.where}families: no pocket model of '{family}'; expected one of {', '.join(POCKETS)}")
    if "{people}" not in data:
        raise BadInput(f"{keys.where}data: expected '{{people}}' where the seed of the people stands, found {data!r}")
    return [
        Case(
            name=f"{family}-people{seed}-model{model}-{_as_name(wanted)}",
            data=data.replace("{people}", str(seed)),
            forget=wanted,
            draw=seed,
            vanilla=GridPocket(family, model),
            golds=tuple(GridPocket(family, model + i * NEXT_GOLD) for i in range(golds)),
        )
        for family, seed in itertools.product(families, people)
        for model in model_seeds or (seed,)
        for wanted in forget
    ]


def _given(keys: Keys) -> Case:
    vanilla = keys.take("vanilla", text)
    case = Case(
        name=keys.take("name", name, re.sub("[^A-Za-z0-9]+", "-", Path(vanilla).name).strip("-") or "given"),
        data=keys.take("data", text),
        forget=keys.take("forget", request),
        draw=DRAWN,
        vanilla=vanilla,
        golds=keys.take("golds", several(text, empty=True), ()),
    )
    keys.done()
    return case


def reads(cases: Iterable[Case]) -> list[str]:
    """The data of these cases, and their models that are there already."""
    return [given for case in cases for given in (case.data, case.vanilla, *case.golds) if isinstance(given, str)]
