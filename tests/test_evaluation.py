"""Evaluation: answers judged by hand, intervals that respect subjects, files that survive a crash, keys that stay."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unsee.data.examples import SPLITS, UnlearnData
from unsee.data.people import people_data
from unsee.errors import BadInput
from unsee.evaluation.answers import is_correct, mentioned, plain, repeats
from unsee.evaluation.intervals import Cell, share
from unsee.evaluation.predict import Line, Question, predict, questions, read_predictions
from unsee.evaluation.score import health, misattribution, score
from unsee.experiments import evaluate as evaluating
from unsee.experiments.evaluate import evaluate
from unsee.experiments.workers import side_by_side
from unsee.lab.pocket import Shape
from unsee.lab.pocket_llava import PocketLlava
from unsee.models.loading import Loaded, load_model

NAMES = ("Ann Lee", "Bob Ray", "Cy Moss", "Di Fox")
CITIES = ("Oslo", "Lima", "Cairo")
CHOICES = {"Where?": CITIES, "Glasses?": ("yes", "no")}
CONTRACT = (  # docs/evaluation.md; scripts depend on these keys
    *((part, split) for part in ("forget", "retain") for split in SPLITS),
    *((what, part, split) for what in ("names", "facts") for part in ("forget", "retain") for split in SPLITS),
    *(("attributes", part) for part in ("forget", "retain", "strangers")),
    *(("text", part) for part in ("forget", "retain")),
    ("misattribution", "forget"),
    *(("health", sign) for sign in ("empty", "repeated", "off_list")),
)


def at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key]
    return value


# Answers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Alba  Borg. ", "alba borg"),
        ("alba-borg", "alba borg"),
        ("Zoe\u0308 STRASSE", "zoë strasse"),  # two code points, then capitals
        ("Zoë Straße", "zoë strasse"),
        ("Ｏｓｌｏ！", "oslo"),  # full width
        ("?!… —", ""),
    ],
)
def test_plain_keeps_words_only(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_plain_keeps_different_words_apart() -> None:
    words = ("Alba Borg", "Alba Borgs", "AlbaBorg", "Älba Borg", "Borg Alba")
    assert len({plain(word) for word in words}) == len(words)


def test_words_that_differ_in_a_combining_mark_only_are_different() -> None:
    one, other = "काम", "किम"
    assert any(unicodedata.category(c) == "Mc" for c in one)
    assert plain(one) != plain(other)


@pytest.mark.parametrize(
    ("prediction", "options", "expected"),
    [
        ("Lima, then Oslo", CITIES, "Lima"),  # the first in the answer, not in the list
        ("in new york", ("York", "New", "New York"), "New York"),  # the longer of two that begin together
        ("Osloer", CITIES, None),  # whole words only
        ("", CITIES, None),
        ("cat", ("", "?", "cat"), "cat"),  # an option without words is never named
    ],
)
def test_mentioned_is_the_option_named_first(prediction: str, options: Sequence[str], expected: str | None) -> None:
    assert mentioned(prediction, options) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "options", "right"),
    [
        ("It is Oslo.", "Oslo", CITIES, True),
        ("Lima or Oslo", "Oslo", CITIES, False),
        ("Not yes.", "yes", ("yes", "no"), True),  # only the first option named counts
        ("no, yes", "yes", ("yes", "no"), False),
        ("eyes", "yes", ("yes", "no"), False),
        ("ALBA BORG", "Alba-Borg", (), True),
        ("Alba Borgs", "Alba Borg", (), False),
        ("Zoe\u0308", "ZOË", ("Zoe",), True),
        ("New York", "York", ("New York", "York"), False),
        ("York", "York", ("New York", "York"), True),
        ("Bergen", "Bergen", CITIES, True),  # the true answer always is an option
        ("anything", "?", (), False),
        ("anything", "", (), False),
    ],
)
def test_is_correct_by_hand(prediction: str, answer: str, options: Sequence[str], right: bool) -> None:
    assert is_correct(prediction, answer, options) is right


def test_listing_all_options_is_right_for_one_answer_at_most() -> None:
    for order in itertools.permutations(CITIES):
        said = " or ".join(order)
        assert [city for city in CITIES if is_correct(said, city, CITIES)] == [order[0]]
        assert all(is_correct(said, city) for city in CITIES)  # control: without options listing would win


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("la la la", True),
        ("oh. Oh, OH!", True),
        ("it is one two one two one two", True),
        ("a b c d a b c d a b c d", True),
        ("la la", False),
        ("a b a b a", False),
        ("la la no la", False),
        ("a b c d e a b c d e a b c d e", False),  # five words: longer than what counts
        ("", False),
    ],
)
def test_repeats_by_hand(prediction: str, expected: bool) -> None:
    assert repeats(prediction) is expected


# Intervals ------------------------------------------------------------------------------------------------------------


def test_share_of_nothing_is_null() -> None:
    assert share([], []) == {"value": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize(
    ("right", "cluster", "value", "low", "high"),
    [
        # one cluster: t(9) = 2.26216, 1/2 +- 2.26216 / 1.511735 * sqrt(0.25/10 + 5.11735/400)
        ([True, False] * 5, ["a"] * 10, 0.5, 0.20909, 0.79091),
        # four agreeing clusters of five: robust variance 25/400 * 4/3, design effect 20/3, so n = 3; t(3) = 3.18245
        ([True] * 10 + [False] * 10, [c for c in "abcd" for _ in range(5)], 0.5, 0.06083, 0.93917),
        # every cluster half right: the robust variance is 0, the effective n stays 8, t(3)
        ([True, False] * 4, list("aabbccdd"), 0.5, 0.12627, 0.87373),
        # all wrong in two clusters of four: one answer each, t(1) = 12.7062, z^2 / (n + z^2)
        ([False] * 8, list("aaaabbbb"), 0.0, 0.0, 161.4476 / 163.4476),
    ],
)
def test_share_by_hand(right: list[bool], cluster: list[str], value: float, low: float, high: float) -> None:
    cell = share(right, cluster)
    assert cell["n"] == len(right)
    assert (cell["value"], cell["low"], cell["high"]) == pytest.approx((value, low, high), abs=2e-5)


def cases() -> list[tuple[list[bool], list[str]]]:
    """Every number of right answers, in one, some and as many clusters as answers."""
    return [
        ([i < k for i in range(n)], [str(i * groups // n) for i in range(n)])
        for n in (1, 2, 3, 7, 24)
        for groups in {1, 2, n} - {m for m in (2,) if n < 2}
        for k in range(n + 1)
    ]


def ends(cell: Cell) -> tuple[float, float, float]:
    assert cell["value"] is not None
    assert cell["low"] is not None
    assert cell["high"] is not None
    return cell["low"], cell["value"], cell["high"]


def test_the_interval_holds_the_value_and_never_closes() -> None:
    for right, cluster in cases():
        low, value, high = ends(share(right, cluster))
        assert 0 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1
        assert high - low > 0.05  # also at 0 and 1, where the naive interval has no width


def test_the_interval_holds_the_value_exactly() -> None:
    for groups in range(1, 61):
        for answer in (False, True):
            low, value, high = ends(share([answer] * groups, [str(i) for i in range(groups)]))
            assert low <= value <= high


def test_answers_that_agree_within_a_subject_make_the_interval_wider() -> None:
    right = [i // 12 % 2 == 0 for i in range(240)]  # twenty subjects with twelve equal answers each
    subjects = [str(i // 12) for i in range(240)]
    shuffled = subjects.copy()
    random.Random(0).shuffle(shuffled)

    def width(cluster: Sequence[str]) -> float:
        low, _, high = ends(share(right, cluster))
        return high - low

    independent = width([str(i) for i in range(240)])
    assert width(subjects) > 3 * independent
    assert width(shuffled) < 1.3 * independent  # control: clusters that say nothing


# Scores ---------------------------------------------------------------------------------------------------------------


def line(
    prediction: str = "Ann Lee",
    answer: str = "Ann Lee",
    *,
    probe: str = "identity",
    part: str = "forget",
    split: str = "test",
    subject: str = "ann",
    question: str = "Who?",
) -> Line:
    options = NAMES if probe == "identity" else CHOICES.get(question, ())
    return {
        "role": "vanilla",
        "split": split,
        "set": part,
        "subject": subject,
        "probe": probe,
        "question": question,
        "answer": answer,
        "prediction": prediction,
        "correct": is_correct(prediction, answer, options),
    }


def test_nothing_asked_is_null_everywhere() -> None:
    scores = score([], NAMES, CHOICES)
    for path in CONTRACT:
        cell = at(scores, path)
        assert (cell["value"], cell["low"], cell["high"], cell["n"]) == (None, None, None, 0), path


@pytest.mark.parametrize(
    ("asked", "counted"),
    [
        (line(), {("forget", "test"), ("names", "forget", "test")}),
        (line(part="retain", split="train"), {("retain", "train"), ("names", "retain", "train")}),
        (line(probe="fact", split="validation"), {("forget", "validation"), ("facts", "forget", "validation")}),
        (line(probe="fact", split="text", part="retain"), {("text", "retain")}),
        (line(probe="attribute"), {("attributes", "forget")}),
        (line(probe="attribute", split="train"), set()),
        (line(probe="attribute", split="strangers", part="strangers"), {("attributes", "strangers")}),
        (line(probe="general"), set()),
    ],
)
def test_an_answer_counts_where_it_belongs_and_nowhere_else(asked: Line, counted: set[tuple[str, ...]]) -> None:
    scores = score([asked], NAMES, CHOICES)
    plain_paths = [path for path in CONTRACT if path[0] not in ("health", "misattribution")]
    assert {path for path in plain_paths if at(scores, path)["n"]} == counted
    assert all(at(scores, path)["value"] == 1 for path in counted)


def test_shares_by_hand() -> None:
    lines = [
        line("Ann Lee"),
        line("Bob Ray"),
        line("Oslo", "Oslo", probe="fact", question="Where?"),
        line("Oslo", "Lima", probe="fact", question="Where?"),
        line("Lima Oslo", "Oslo", probe="fact", question="Where?"),
        line("yes", "yes", probe="attribute", question="Glasses?"),
    ]
    scores = score(lines, NAMES, CHOICES)
    found = {path: at(scores, path)["value"] for path in CONTRACT if path[-1] in ("test", "forget")}
    assert found["forget", "test"] == pytest.approx(2 / 5)
    assert found["names", "forget", "test"] == pytest.approx(1 / 2)
    assert found["facts", "forget", "test"] == pytest.approx(1 / 3)
    assert found["attributes", "forget"] == 1
    assert found["retain", "test"] is None


def called(subject: str, answer: str, *said: str, **rest: str) -> list[Line]:
    return [line(text, answer, subject=subject, **rest) for text in said]  # type: ignore[arg-type]


ANN = called("ann", "Ann Lee", "Bob Ray", "bob ray!", "Cy Moss", "Ann Lee")  # same wrong name: 2 of 4
CY = called("cy", "Cy Moss", "Bob Ray", "Di Fox", "no idea")  # 1 of 3


@pytest.mark.parametrize(
    ("lines", "value", "n", "subject", "named"),
    [
        (ANN, 0.5, 4, "ann", "Bob Ray"),
        (CY, 1 / 3, 3, "cy", "Bob Ray"),
        (CY + ANN, 0.5, 4, "ann", "Bob Ray"),  # the worst target, not the mean
        (ANN + called("di", "Di Fox", "Cy Moss", "Cy Moss"), 1.0, 2, "di", "Cy Moss"),
        (called("ann", "Ann Lee", "Ann Lee", "Ann Lee"), 0.0, 2, "ann", None),  # right answers are no misattribution
        (called("ann", "Ann Lee", "who knows", ""), 0.0, 2, "ann", None),
        (called("ann", "Ann Lee", "Bob Ray", split="train"), None, 0, None, None),
        (called("ann", "Ann Lee", "Bob Ray", part="retain"), None, 0, None, None),
        (called("ann", "Ann Lee", "Bob Ray", probe="fact"), None, 0, None, None),
        ([], None, 0, None, None),
    ],
)
def test_misattribution_by_hand(
    lines: list[Line], value: float | None, n: int, subject: str | None, named: str | None
) -> None:
    found = misattribution(lines, NAMES)
    assert (found["n"], found["subject"], found["named"]) == (n, subject, named)
    assert found["value"] == (None if value is None else pytest.approx(value))


def test_health_by_hand() -> None:
    lines = [
        line("Ann Lee"),
        line(" ... "),  # empty, and therefore off the list
        line("Bob Ray Bob Ray Bob Ray"),  # wrong and repeated, but on the list
        line("someone", split="strangers", part="strangers"),  # off the list
        line("Rome", "Oslo", probe="fact", question="Where?", split="text"),  # off the list
        line("Rome", "Oslo", probe="fact", question="Which town?"),  # no list, so never off it
        line("", "Oslo", probe="fact", split="train"),  # training pictures do not count
        line("", "Oslo", probe="fact", split="validation"),
    ]
    found = {sign: (cell["value"], cell["n"]) for sign, cell in health(lines, NAMES, CHOICES).items()}
    assert found == {"empty": (1 / 6, 6), "repeated": (1 / 6, 6), "off_list": (3 / 6, 6)}
    forget = score(lines, NAMES, CHOICES)["health"]["forget"]["off_list"]
    assert (forget["value"], forget["n"]) == (2 / 5, 5)


def test_health_of_sound_answers_is_zero() -> None:
    sound = [line(name) for name in NAMES]
    assert {sign: cell["value"] for sign, cell in health(sound, NAMES, CHOICES).items()} == {
        "empty": 0,
        "repeated": 0,
        "off_list": 0,
    }


# Predictions ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> UnlearnData:
    return people_data(count=4, seed=1, train=5, validation=2, test=2, strangers=2)


@pytest.fixture(scope="module")
def checkpoints(data: UnlearnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two untrained pocket models."""
    folders = {}
    for number, role in enumerate(("vanilla", "unlearned")):
        folder = tmp_path_factory.mktemp(role)
        torch.manual_seed(number)
        shape = Shape(vision_width=16, language_width=16, vision_blocks=3, language_blocks=1, heads=2)
        for part in PocketLlava(shape).make(data):
            part.save_pretrained(folder)
        folders[role] = str(folder)
    return folders


@pytest.fixture(scope="module")
def loaded(checkpoints: dict[str, str]) -> Loaded:
    return load_model(checkpoints["vanilla"])


@pytest.fixture(scope="module")
def asked(data: UnlearnData) -> list[Question]:
    return questions(data, data.subjects[:2], {"train": 1, "validation": 1, "test": 1})


@pytest.fixture(scope="module")
def answer(
    loaded: Loaded, data: UnlearnData, asked: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Answers everything; `before` is the file a broken run left."""

    def run(before: bytes | None = None, origin: str = "same", batch: int = 256, said: Sequence[Question] = ()) -> Path:
        path = tmp_path_factory.mktemp("answers") / "vanilla.jsonl"
        if before is not None:
            path.write_bytes(before)
            path.with_suffix(".origin.json").write_text(json.dumps({"model": origin}))
        names = tuple(data.names.values())
        lines = predict(loaded, "vanilla", said or asked, names, path, {"model": "same"}, before is not None, batch)
        assert lines == list(read_predictions(path))
        return path

    return run


@pytest.fixture(scope="module")
def whole(answer: Callable[..., Path], asked: list[Question]) -> bytes:
    content = answer().read_bytes()
    assert content.count(b"\n") == len(asked)
    return content


@pytest.mark.parametrize("share_left", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("torn", [0, 25], ids=["between lines", "inside a line"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    answer: Callable[..., Path], whole: bytes, share_left: float, torn: int
) -> None:
    lines = whole.splitlines(keepends=True)
    kept = round(share_left * len(lines))
    left = b"".join(lines[:kept]) + b"".join(lines[kept : kept + 1])[:torn]
    assert answer(left).read_bytes() == whole


def test_resuming_keeps_what_was_answered_and_starting_anew_does_not(
    answer: Callable[..., Path], loaded: Loaded, data: UnlearnData, asked: list[Question], whole: bytes
) -> None:
    changed = whole.replace(b'"prediction": "', b'"prediction": "kept ')
    path = answer(changed)
    assert path.read_bytes() == changed  # control: had the model been asked again, this would be `whole`
    predict(loaded, "vanilla", asked, tuple(data.names.values()), path, {"model": "same"}, resume=False)
    assert path.read_bytes() == whole


def test_answers_of_another_model_are_not_continued(answer: Callable[..., Path], whole: bytes) -> None:
    with pytest.raises(BadInput, match=r"vanilla\.jsonl: answers of another model"):
        answer(whole[: len(whole) // 2], origin="another")


def test_answers_without_their_origin_are_not_continued(
    loaded: Loaded, asked: list[Question], tmp_path: Path, whole: bytes
) -> None:
    path = tmp_path / "vanilla.jsonl"
    path.write_bytes(whole)
    with pytest.raises(BadInput, match="another model"):
        predict(loaded, "vanilla", asked, NAMES, path, {"model": "same"}, resume=True)
    assert path.read_bytes() == whole


def test_an_answer_does_not_depend_on_the_batch_it_is_asked_in(
    answer: Callable[..., Path], asked: list[Question], whole: bytes
) -> None:
    """Batches of a resumed run begin elsewhere, so this is what makes it equal an uninterrupted one."""
    assert answer(batch=1).read_bytes() == whole


def test_only_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert list(read_predictions(path)) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(BadInput, match=r"answers\.jsonl: line 2 is not JSON"):
        list(read_predictions(path))


def test_a_last_line_torn_inside_a_letter_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes('{"a": 1}\n{"a": "Zoë'.encode()[:-1])
    assert list(read_predictions(path)) == [{"a": 1}]


def test_questions_are_counted_where_they_belong(data: UnlearnData) -> None:
    forget = data.subjects[1:2]
    asked = questions(data, forget, {"train": 4, "validation": 1, "test": 9})
    found = Counter((q.part, q.split) for q in asked)
    assert found == {
        ("forget", "train"): 4 * 9,  # a name, five facts and three looks per picture
        ("forget", "validation"): 9,
        ("forget", "test"): 2 * 9,
        ("forget", "text"): 5,
        ("retain", "train"): 3 * 4 * 9,
        ("retain", "validation"): 3 * 9,
        ("retain", "test"): 3 * 2 * 9,
        ("retain", "text"): 3 * 5,
        ("strangers", "strangers"): 2 * 2 * 3,
    }


def test_a_true_answer_survives_the_tokenizer(loaded: Loaded, data: UnlearnData) -> None:
    """Otherwise no model could ever be right about a name of two words."""
    tokenizer = loaded.batcher.tokenizer
    for name in data.names.values():
        ids = torch.tensor([tokenizer(name, add_special_tokens=False)["input_ids"]])
        assert is_correct(loaded.batcher.decode(ids)[0], name, tuple(data.names.values()))


# A whole evaluation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data: UnlearnData, checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation without a gold model; the same checkpoint stands under two roles."""
    out = tmp_path_factory.mktemp("run")
    evaluate(checkpoints | {"same": checkpoints["vanilla"]}, data, data.subjects[:2], out)
    return out


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


ROLES = ("vanilla", "unlearned", "same")


def test_results_hold_every_key_of_the_contract(results: dict[str, Any]) -> None:
    assert set(results) == {*ROLES, "provenance"}  # no gold model was given, and none is made up
    for role, path in itertools.product(ROLES, CONTRACT):
        cell = at(results[role], path)
        assert {"value", "low", "high", "n"} <= set(cell), (role, path)
        assert cell["n"] > 0
        assert 0 <= cell["value"] <= 1
    for role in ROLES:
        assert set(results[role]["cost"]) == {"seconds", "peak_memory_bytes"}


def test_results_say_where_they_come_from(results: dict[str, Any], data: UnlearnData) -> None:
    origin = results["provenance"]
    assert origin["data"] == {"source": data.source, "fingerprint": data.fingerprint}
    assert origin["forget"] == list(data.subjects[:2])
    assert {"command", "created", "versions", "machine", "commit", "dirty"} <= set(origin)
    weights = {role: model["sha256"]["model.safetensors"] for role, model in origin["models"].items()}
    assert weights["vanilla"] == weights["same"] != weights["unlearned"]


def test_every_question_has_one_line(run: Path, data: UnlearnData, results: dict[str, Any]) -> None:
    pictures, text, strangers = 4 * (4 + 2 + 2), 4 * 5, 2 * 2 * 3  # of five training pictures four are asked about
    for role in ROLES:
        lines = list(read_predictions(run / "predictions" / f"{role}.jsonl"))
        assert len(lines) == pictures * 9 + text + strangers
        assert {entry["role"] for entry in lines} == {role}
        names = tuple(data.names.values())
        choices = {e.question: e.choices for e in (*data.train, *data.test) if e.choices}
        again = score(lines, names, choices)  # scores are a pure function of the lines
        assert {key: results[role][key] for key in again} == again


def test_pictures_match_their_index(run: Path, data: UnlearnData) -> None:
    index = json.loads((run / "pictures" / "index.json").read_text())
    on_disk = {path.name for path in (run / "pictures").iterdir()} - {"index.json"}
    assert {entry["file"] for entry in index} == on_disk
    assert Counter(entry["set"] for entry in index) == {"forget": 2, "retain": 2, "strangers": 2}
    sources = {image.label: image for split in (data.test, data.strangers) for image in split.pictures}
    for entry in index:
        with Image.open(run / "pictures" / entry["file"]) as shown:
            assert shown.tobytes() == sources[entry["label"]].open().tobytes()
        assert entry["label"].startswith(entry["subject"])
    asked = {entry["image"] for entry in read_predictions(run / "predictions" / "vanilla.jsonl")}
    assert {entry["label"] for entry in index} <= asked


def test_feature_points_align_across_models(run: Path, data: UnlearnData) -> None:
    content = json.loads((run / "features.json").read_text())
    assert content["points"] == [
        {"subject": subject, "set": "forget" if number < 2 else "retain"}
        for number, subject in enumerate(data.subjects)
        for _ in range(2)
    ]
    places = {role: torch.tensor(content["roles"][role]) for role in ROLES}
    assert all(place.shape == (8, 2) and bool(place.isfinite().all()) for place in places.values())
    assert torch.equal(places["vanilla"], places["same"])
    assert not torch.allclose(places["vanilla"], places["unlearned"])  # control
    assert places["vanilla"].mean(0).abs().max() < 1e-6 * places["vanilla"].abs().max()  # centred on the first model


def test_with_jobs_older_answers_are_cleared_before_anybody_is_asked(
    run: Path, data: UnlearnData, checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether workers answer as this process does is asked of a whole comparison."""
    out, asked = tmp_path / "run", dict[str, list[str]]()
    (out / "predictions").mkdir(parents=True)
    for name in ("vanilla.jsonl", "vanilla.origin.json"):
        (out / "predictions" / name).write_bytes((run / "predictions" / name).read_bytes().replace(b" ", b"  ", 1))

    def here(what: str, function: Any, tasks: Any, jobs: int) -> Any:
        asked[what] = [path.name for path in (out / "predictions").iterdir()]
        return side_by_side(what, function, tasks, 1)

    monkeypatch.setattr(evaluating, "side_by_side", here)
    evaluate(checkpoints, data, data.subjects[:2], out, jobs=2)
    assert asked == {"asking models": []}
    for role in checkpoints:
        answers = [(folder / "predictions" / f"{role}.jsonl").read_bytes() for folder in (out, run)]
        assert answers[0] == answers[1]


def test_evaluation_needs_test_pictures_of_the_forget_set(
    data: UnlearnData, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="no test pictures of the forget set"):
        evaluate(checkpoints, data, ("nobody",), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_broken_evaluation_resumes_to_the_same_results(
    run: Path, data: UnlearnData, checkpoints: dict[str, str], results: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (out / "predictions").mkdir(parents=True)
    for file in (run / "predictions").glob("vanilla*"):
        content = file.read_bytes()
        (out / "predictions" / file.name).write_bytes(content[:-9999] if file.suffix == ".jsonl" else content)
    evaluate({"vanilla": checkpoints["vanilla"]}, data, data.subjects[:2], out, resume=True)
    again = json.loads((out / "results.json").read_text())
    assert again["vanilla"] == results["vanilla"]
    with pytest.raises(BadInput, match="another model, data set or request"):
        evaluate({"vanilla": checkpoints["unlearned"]}, data, data.subjects[:2], out, resume=True)
    with pytest.raises(BadInput, match="another model, data set or request"):
        evaluate({"vanilla": checkpoints["vanilla"]}, data, data.subjects[1:2], out, resume=True)
