"""Settings that had another name are still read under it: from the command line, mappings, grids and older runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unsee.errors import BadInput
from unsee.methods import METHODS
from unsee.requests.run import EditRecipe
from unsee.settings import from_text, method_from_text, named_method, now_named, of_method, renamed
from unsee.study.grid import read_compare
from unsee.study.search import read_frozen

OLD = [(name, old, new) for name, kind in METHODS.items() for old, new in renamed(kind).items()]
every_old_name = pytest.mark.parametrize(("name", "old", "new"), OLD, ids=lambda value: value)
FROZEN = sorted((Path(__file__).parents[1] / "benchmarks" / "settings").glob("*.toml"))  # found before the renaming
OF_OLD = {  # as ledgers and manifests of older runs have them
    "nscvf": {"push": 6.0, "keep": 4000.0, "looks": 30.0, "dial_high": 64.0, "same_looks": False, "close": 0.25},
    "nscvf-direct": {"keep": 1.0, "dial_low": 0.2, "dial_high": 1.5, "dial_margin": 0.1, "same_looks": 1.0},
    "vkd": {"forget": 2.0, "keep": 3.0, "main": 4.0},
}
OF_NOW = {
    "nscvf": {
        "forget_weight": 6.0,
        "retain_weight": 4000.0,
        "attribute_weight": 30.0,
        "forget_weight_high": 64.0,
        "same_attributes": False,
        "nearest_share": 0.25,
    },
    "nscvf-direct": {
        "retain_weight": 1.0,
        "strength_low": 0.2,
        "strength_high": 1.5,
        "adapt_margin": 0.1,
        "same_attributes": 1.0,
    },
    "vkd": {"forget_weight": 2.0, "retain_weight": 3.0, "main_weight": 4.0},
}

PEOPLE = 'families = ["llava"]\ndata = "people:count=9,seed={people}"\nforget = ["first:1"]\ngolds = 1\n'
GRID = (
    f"seeds = [0]\n[models]\n{PEOPLE}people = [10]\n"
    f"[search]\nseconds = 9\ntries = 4\n[search.models]\n{PEOPLE}people = [100]\n"
)


def value_of(name: str, setting: str) -> Any:
    """A value that is not the default."""
    default = {f.name: f.default for f in dataclasses.fields(METHODS[name])}[setting]  # type: ignore[arg-type]
    return not default if isinstance(default, bool) else type(default)(default / 2 or 0.5)


def test_there_are_old_names() -> None:
    assert {name for name, _, _ in OLD} == {"nscvf", "cvf", "nscvf-direct", "vkd"}


@every_old_name
def test_an_old_name_is_read_as_the_new_one(name: str, old: str, new: str) -> None:
    value = value_of(name, new)
    now = named_method(name, {new: value})
    assert named_method(name, {old: value}) == now != named_method(name, {})
    assert method_from_text(name, [f"{old}={value}"]) == now
    assert old not in vars(now), "what is written has new names alone"


@every_old_name
def test_both_names_at_once_are_refused(name: str, old: str, new: str) -> None:
    value = value_of(name, new)
    with pytest.raises(BadInput, match=rf"{old}: now called {new}, which is given too; keep one"):
        named_method(name, {old: value, new: value})
    with pytest.raises(BadInput, match=rf"^--set {old}: now called {new}, "):
        method_from_text(name, [f"{new}={value}", f"{old}={value}"])


@pytest.mark.parametrize(("name", "foreign"), [("vkd", "push"), ("cvf", "main"), ("ga", "keep"), ("nscvf", "shove")])
def test_names_that_a_method_never_had_are_refused(name: str, foreign: str) -> None:
    with pytest.raises(BadInput, match=f"^settings: {foreign}: no such setting"):
        named_method(name, {foreign: 1.0})


def test_what_has_no_other_name_stays() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own:
        push: float = 1.0

    assert from_text(Own, ["push=2"]) == Own(2.0)
    assert now_named(Own, {"push": 2.0, "strange": 1}) == {"push": 2.0, "strange": 1}
    assert of_method("nobody's", {"push": 1}) == {"push": 1}
    assert of_method("nscvf", "damaged") == "damaged"


@pytest.mark.parametrize("name", OF_OLD)
def test_a_grid_with_old_names_asks_for_the_same_edits(name: str, tmp_path: Path) -> None:
    def arms(settings: Mapping[str, Any]) -> Any:
        *fixed, (tried, value) = settings.items()
        given = ", ".join(f"{key} = {str(one).lower()}" for key, one in fixed)
        grid = tmp_path / "grid.toml"
        grid.write_text(
            f"{GRID}[[arms]]\nmethod = '{name}'\nsettings = {{ {given} }}\nsearch = {{ {tried} = [{value}, 0.75] }}\n"
        )
        return read_compare(grid).arms

    old, now = OF_OLD[name], OF_NOW[name]
    assert arms(old) == arms(now) != arms({**now, "retain_weight": 5.0})
    first, *_, last = old
    with pytest.raises(BadInput, match=f"{first}: now called .*, which is given too"):
        arms({**old, next(iter(now)): 1.0, last: old[last]})


def test_settings_frozen_before_the_renaming_are_read() -> None:
    chosen = {place: method for file in FROZEN for place, method in read_frozen(file).chosen.items()}
    assert any("dial_" in file.read_text() for file in FROZEN)
    assert {"nscvf", "cvf", "vkd", "nscvf-direct"} <= {method.name for method in chosen.values()}
    vkd = chosen["qwen2_vl", "vkd"]
    assert (vkd.main_weight, vkd.retain_weight) == (4.0, 1.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OF_OLD)
def test_a_run_of_the_ledger_is_known_by_either_name(name: str) -> None:
    def way(settings: Mapping[str, Any]) -> EditRecipe:
        return EditRecipe({}, name, settings, 0, None, False, None)

    now = way(OF_NOW[name])
    assert now.differs(vars(way(OF_OLD[name]))) is None
    other = dict(OF_OLD[name], keep=5.0)
    assert now.differs(vars(way(other))) == "settings"
    assert now.differs({**vars(way(OF_OLD[name])), "settings": None}) == "settings"
