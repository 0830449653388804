"""Grid files: everything they say is used, and whatever they say wrongly is refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from unsee.attacks.relearn_plan import Relearning
from unsee.errors import BadInput
from unsee.methods import METHODS
from unsee.study.ablate import trial
from unsee.study.audit_measures import read_audit
from unsee.study.grid import NEXT_GOLD, GridPocket, compare_grid, read_ablation, read_compare, reads
from unsee.study.sequence import read_sequence

COMPARE = """
seeds = [0, 1]

[models]
families = ["llava", "qwen2_vl"]
data = "people:count=6,seed={people}"
people = [10, 11]
forget = ["first:1", "random:2"]
golds = 2

[[given]]
name = "mine"
data = "photos"
forget = "anna"
vanilla = "models/vanilla"
golds = ["models/gold"]

[[arms]]
method = "nscvf"
settings = { steps = 3, same_attributes = false, rule = "rank", threshold = 0.5 }

[[arms]]
name = "plain"
method = "cvf"
"""
ABLATION = """
checkpoints = [20, 10]
levels = [0.5]

[[given]]
data = "photos"
forget = "anna"
vanilla = "models/vanilla"

[[tables]]
name = "constraint"
title = "With and without"
settings = { steps = 30 }
learning_rates = [1e-3, 4e-3]
  [[tables.arms]]
  method = "cvf"
  [[tables.arms]]
  method = "nscvf"
  settings = { threshold = 0.3 }
  learning_rates = [8e-3]
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "grid.toml"


def test_a_grid_is_all_combinations_and_what_is_given(written: Path) -> None:
    written.write_text(COMPARE)
    grid = read_compare(written)
    assert grid.seeds == (0, 1)
    built, given = grid.cases[:-1], grid.cases[-1]
    assert [case.name for case in built] == [
        f"{family}-people{people}-model{people}-{request}"
        for family in ("llava", "qwen2_vl")
        for people in (10, 11)
        for request in ("first-1", "random-2")
    ]
    assert built[-1].data == "people:count=6,seed=11"
    assert built[-1].vanilla == GridPocket("qwen2_vl", 11)
    assert built[-1].golds == (GridPocket("qwen2_vl", 11), GridPocket("qwen2_vl", 11 + NEXT_GOLD))
    assert (given.vanilla, given.golds) == ("models/vanilla", ("models/gold",))
    assert reads(grid.every_case)[-2:] == ["models/vanilla", "models/gold"]
    assert [arm.name for arm in grid.arms] == ["nscvf", "plain"]
    told = METHODS["nscvf"](steps=3, same_attributes=False, rule="rank", threshold=0.5)  # type: ignore[call-arg]
    assert vars(grid.arms[0].method) == vars(told)


def test_model_seeds_multiply_where_they_are_given(written: Path) -> None:
    written.write_text(COMPARE.replace("golds = 2", "golds = 2\nmodel_seeds = [5, 6, 7]", 1))
    assert len(read_compare(written).cases) == 2 * 2 * 3 * 2 + 1


def test_arms_of_a_table_share_its_settings_and_learning_rates(written: Path) -> None:
    written.write_text(ABLATION)
    grid = read_ablation(written)
    assert grid.checkpoints == (10, 20)
    plain, constrained = grid.tables[0].arms
    assert (plain.learning_rates, constrained.learning_rates) == ((1e-3, 4e-3), (8e-3,))
    method = trial(constrained, 8e-3)
    assert {"steps": 30, "threshold": 0.3, "learning_rate": 8e-3}.items() <= vars(method).items()
    assert "threshold" not in vars(plain.method)


BAD_COMPARE: dict[str, tuple[str, str, str]] = {  # what is bad -> text, its replacement, what the line names
    "unknown key": ("seeds = [0, 1]", "seed = [0, 1]", "seed: no such key; expected one of"),
    "unknown key of the models": ("golds = 2", "gold = 2", "models.gold: no such key"),
    "unknown key of an arm": ('name = "plain"', 'nmae = "plain"', r"arms\[1\].nmae: no such key"),
    "no list": ("people = [10, 11]", "people = 10", "models.people: expected a list"),
    "a seed in quotes": ("seeds = [0, 1]", 'seeds = [0, "1"]', r"seeds\[1\]: expected a whole number"),
    "a seed below zero": ("seeds = [0, 1]", "seeds = [-1]", r"seeds\[0\]: expected a whole number"),
    "a truth value for a number": ("golds = 2", "golds = true", "models.golds: expected a whole number"),
    "a seed twice": ("seeds = [0, 1]", "seeds = [1, 1]", r"seeds\[1\]: 1 is given twice"),
    "no people in the data": ("seed={people}", "seed=1", "models.data: expected '{people}'"),
    "unknown family": ('"qwen2_vl"]', '"gpt"]', "models.families: no pocket model of 'gpt'"),
    "unknown method": ('method = "cvf"', 'method = "magic"', r"arms\[1\].method: 'magic' is unknown"),
    "unknown setting": ("steps = 3", "stpes = 3", r"arms\[0\].settings: stpes: no such setting"),
    "a setting of another type": ("steps = 3", "steps = 3.5", r"arms\[0\].settings: steps=3.5: expected a whole"),
    "a setting in quotes": ("steps = 3", 'steps = "3"', r"arms\[0\].settings: steps='3': expected a whole"),
    "a setting out of range": ("steps = 3", "steps = -1", r"arms\[0\].settings: steps=-1: expected at least 0"),
    "an unknown choice": ('rule = "rank"', 'rule = "best"', r"arms\[0\].settings: rule='best': expected one of"),
    "learning rates": ('name = "plain"', "learning_rates = [1.0]", r"arms\[1\].learning_rates: no such key"),
    "two arms of one name": ('name = "plain"', 'name = "nscvf"', "the name 'nscvf' is given twice"),
    "a name that is a path": ('name = "mine"', 'name = "../mine"', r"given\[0\].name: expected letters"),
    "not TOML": ("seeds = [0, 1]", "seeds = [0, 1", "not a TOML file"),
    "no arms": ("[[arms]]", "[[others]]", "arms: missing"),
}


SEARCH = """
relearn = { splits = 2, attacker = "lora" }
weights = { retain = 0.5 }

[models]
families = ["llava"]
data = "people:count=6,seed={people}"
people = [10]
forget = ["first:2"]

[search]
seconds = 60
tries = 4
seeds = [3]
[search.models]
families = ["llava"]
data = "people:count=6,seed={people}"
people = [100, 101]
forget = ["first:2"]

[[arms]]
method = "graddiff"
settings = { batch = 8 }
search = { learning_rate = [1e-4, 1e-3], scope = ["visual", "both"] }

[[arms]]
method = "cvf"
"""


def test_a_search_is_every_combination_on_other_people(written: Path) -> None:
    written.write_text(SEARCH)
    grid = read_compare(written)
    assert grid.search is not None
    assert [case.data for case in grid.search.cases] == ["people:count=6,seed=100", "people:count=6,seed=101"]
    assert (grid.search.seconds, grid.search.tries, grid.search.seeds) == (60.0, 4, (3,))
    searched, plain = grid.arms
    said = [(m.learning_rate, m.scope, m.batch) for m in searched.tries]  # type: ignore[attr-defined]
    assert said == [(1e-4, "visual", 8), (1e-4, "both", 8), (1e-3, "visual", 8), (1e-3, "both", 8)]
    assert plain.tries == (plain.method,)
    assert vars(grid.weights) == {"forget": 1.0, "retain": 0.5, "attributes": 1.0, "text": 1.0}
    assert grid.relearning == Relearning(splits=2, attacker="lora")
    written.write_text(SEARCH.replace('relearn = { splits = 2, attacker = "lora" }', "relearn = true"))
    assert read_compare(written).relearning == Relearning()
    written.write_text(SEARCH.replace('relearn = { splits = 2, attacker = "lora" }', "relearn = false"))
    assert read_compare(written).relearning is None


BAD_SEARCH: dict[str, tuple[str, str, str]] = {
    "more tries than the budget": (
        "tries = 4",
        "tries = 3",
        r"arms\[0\].search: 4 combinations, search.tries allows 3",
    ),
    "a value twice": ("[1e-4, 1e-3]", "[1e-4, 1e-4]", r"search.learning_rate\[1\]: 0.0001 is given twice"),
    "one value": ("[1e-4, 1e-3]", "1e-4", r"search.learning_rate: expected a list"),
    "a setting fixed and searched": ("{ batch = 8 }", "{ scope = 'both' }", r"search.scope: stands in settings too"),
    "an unknown setting": ("{ learning_rate", "{ rate", r"arms\[0\].search: rate: no such setting"),
    "a value of another type": ('["visual", "both"]', '["visual", 3]', r"search: scope=3: expected one of"),
    "no people": ("[search.models]", "[search.modles]", r"search.models: missing"),
    "no gold models": ("people = [100, 101]", "people = [100, 101]\ngolds = 0", "has no gold model"),
    "no budget": ("seconds = 60", "", "search.seconds: missing"),
    "a search of nobody": ("[search]", "[searching]", "searching: no such key"),
    "an unknown weight": ("retain = 0.5", "names = 0.5", "weights.names: no such key"),
    "a weight below zero": ("retain = 0.5", "retain = -1", "weights.retain: expected a number, zero or more"),
    "an unknown attacker": ('"lora"', '"magic"', "relearn: attacker='magic': expected one of full, lora, visual"),
    "no attack at all": ('{ splits = 2, attacker = "lora" }', "3", "relearn: expected true, false or a table"),
}


def test_lists_of_settings_need_people_to_search_on(written: Path) -> None:
    written.write_text(COMPARE + "search = { steps = [1, 2] }\n")
    with pytest.raises(BadInput, match=r"arms\[1\].search: needs a table \[search\]"):
        read_compare(written)


BAD_ABLATION: dict[str, tuple[str, str, str]] = {
    "unknown key": ("levels = [0.5]", "level = [0.5]", "level: no such key"),
    "unknown key of a table": ('title = "With', 'titel = "With', r"tables\[0\].title: missing"),
    "a level in percent": ("levels = [0.5]", "levels = [50]", r"levels\[0\]: expected a fraction"),
    "no learning rate": ("learning_rates = [1e-3, 4e-3]", "", r"tables\[0\].arms\[0\].learning_rates: expected a list"),
    "a learning rate of zero": ("[8e-3]", "[0.0]", r"arms\[1\].learning_rates\[0\]: expected a number above zero"),
    "the rate as a setting": ("steps = 30", "learning_rate = 0.1", r"settings.learning_rate: stands in learning_rates"),
    "a method without steps on features": ('method = "cvf"', 'method = "ga"', "'ga' does not train visual features"),
    "no models": ("[[given]]", "[[tables]]\n[[others]]", "models: missing"),
}


WRONG = {"compare": (COMPARE, BAD_COMPARE), "search": (SEARCH, BAD_SEARCH), "ablate": (ABLATION, BAD_ABLATION)}


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, (_, bad) in WRONG.items() for case in bad])
def test_a_wrong_grid_is_refused_by_file_and_key(written: Path, kind: str, case: str) -> None:
    text, (good, bad, message) = WRONG[kind][0], WRONG[kind][1][case]
    assert good in text
    text = text.replace(good, bad)
    if case == "a search of nobody":
        text = text.replace("[search.models]", "[searching.models]")
    written.write_text(text)
    with pytest.raises(BadInput, match=message) as refused:
        (read_ablation if kind == "ablate" else read_compare)(written)
    assert str(written) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_grid_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere.toml: cannot be read"):
        read_compare(tmp_path / "nowhere.toml")


MODELS = {"vanilla": "v", "gold": "g", "gold-2": "h"}


def test_options_make_the_same_grid_as_a_file(written: Path) -> None:
    written.write_text(
        'seeds = [0, 3]\n[[arms]]\nmethod = "cvf"\n[[arms]]\nmethod = "ga"\n'
        '[[given]]\ndata = "photos"\nforget = "anna"\nvanilla = "v"\ngolds = ["g", "h"]\n'
    )
    assert compare_grid(None, MODELS, "photos", "anna", "cvf,ga", "0, 3") == read_compare(written)
    assert compare_grid(None, MODELS, "photos", "anna", "cvf", "0, 3") != read_compare(written)


@pytest.mark.parametrize(
    ("file", "models", "methods", "seeds", "message"),
    [
        ("grid.toml", MODELS, None, None, "--grid grid.toml: stands for --model too"),
        (None, {"gold": "g"}, "cvf", None, "vanilla is missing"),
        (None, {**MODELS, "mine": "m"}, "cvf", None, "found mine"),
        (None, MODELS, None, None, "--methods: missing"),
        (None, MODELS, "cvf,magic", None, "'magic' is unknown"),
        (None, MODELS, "cvf", "0,x", "--seeds\\[1\\]: expected a whole number"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    file: str | None, models: dict[str, str], methods: str | None, seeds: str | None, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        compare_grid(
            Path(file) if file else None, models, *(None, None) if file else ("photos", "anna"), methods, seeds
        )


@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[1].glob("benchmarks/grids/*.toml")), ids=lambda p: p.name
)
def test_the_grids_in_benchmarks_can_be_read(file: Path) -> None:
    if file.name == "sequence.toml":
        assert read_sequence(file).arms
        return
    if file.name == "measures.toml":
        assert read_audit(file).cases
        return
    grid = read_compare(file) if "\n[[arms]]" in file.read_text() else read_ablation(file)
    assert grid.cases
