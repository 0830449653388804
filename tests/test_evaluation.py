"""Evaluation with a model: files that survive a crash, results that say where they come from, keys that stay."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import CONTRACT, NAMES, at
from PIL import Image

from unsee.data.examples import UnlearnData
from unsee.data.people import people_data
from unsee.errors import BadInput
from unsee.evaluation import evaluate as measuring
from unsee.evaluation.answers import is_correct
from unsee.evaluation.evaluate import EvaluationRequest, evaluate
from unsee.evaluation.intervals import share
from unsee.evaluation.predict import predict
from unsee.evaluation.questions import SETS, MeasuredQuestion, Question, questions
from unsee.evaluation.score import line, score
from unsee.journal import Journal, Line, json_line, read_lines
from unsee.lab.pocket import Shape
from unsee.lab.pocket_llava import PocketLlava
from unsee.models.loading import Loaded, load_model, with_weights

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


def journal(path: Path) -> Journal:
    return Journal(path, {"model": "same"})


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
        lines = predict(loaded, "vanilla", said or asked, names, journal(path), before is not None, batch)
        assert lines == list(read_lines(path))
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
    predict(loaded, "vanilla", asked, tuple(data.names.values()), journal(path), resume=False)
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
        predict(loaded, "vanilla", asked, NAMES, journal(path), resume=True)
    assert path.read_bytes() == whole


def test_an_answer_does_not_depend_on_the_batch_it_is_asked_in(
    answer: Callable[..., Path], asked: list[Question], whole: bytes
) -> None:
    """Batches of a resumed run begin elsewhere, so this is what makes it equal an uninterrupted one."""
    assert answer(batch=1).read_bytes() == whole


def test_only_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(BadInput, match=r"answers\.jsonl: line 2 is not JSON"):
        list(read_lines(path))


def test_a_last_line_torn_inside_a_letter_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes('{"a": 1}\n{"a": "Zoë'.encode()[:-1])
    assert list(read_lines(path)) == [{"a": 1}]


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
    evaluate(EvaluationRequest(checkpoints | {"same": checkpoints["vanilla"]}, data, data.subjects[:2]), out)
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
        lines = list(read_lines(run / "predictions" / f"{role}.jsonl"))
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
    asked = {entry["image"] for entry in read_lines(run / "predictions" / "vanilla.jsonl")}
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


@pytest.mark.usefixtures("quick_workers")
def test_with_jobs_older_answers_are_cleared_before_anybody_is_asked(
    run: Path, data: UnlearnData, checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether workers answer as this process does is asked of a whole comparison."""
    out, asked = tmp_path / "run", list[str]()
    for name in ("predictions/vanilla.jsonl", "measures/vanilla.jsonl", "measures/vanilla.jsonl.1"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        older = (run / name.removesuffix(".1")).read_bytes()
        (out / name).write_bytes(older.replace(b" ", b"  ", 1))

    def here(what: str, function: Any, tasks: Any, jobs: int) -> Any:
        asked.extend(f.read_text() for folder in ("predictions", "measures") for f in (out / folder).glob("*.jsonl*"))
        asker = measuring.Asker(function.args[0])
        for (process,) in tasks.values():
            for role in function.args[0].parts:
                asker.work(role, process, jobs)
        return ()

    monkeypatch.setattr(measuring, "side_by_side", here)
    evaluate(EvaluationRequest(checkpoints, data, data.subjects[:2]), out, jobs=2)
    assert set(asked) == {""}
    for role in checkpoints:
        for folder in ("predictions", "measures"):
            answers = [(place / folder / f"{role}.jsonl").read_bytes() for place in (out, run)]
            assert answers[0] == answers[1]


def test_evaluation_needs_test_pictures_of_the_forget_set(
    data: UnlearnData, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="no test pictures of the forget set"):
        evaluate(EvaluationRequest(checkpoints, data, ("nobody",)), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["everything", "half", "measured", "answers"])
def test_a_broken_evaluation_resumes_to_the_same_results(
    left: str, run: Path, data: UnlearnData, checkpoints: dict[str, str], results: dict[str, Any], tmp_path: Path
) -> None:
    """Left are all lines, some, those that measures alone ask for, as `unsee study audit` does, or answers alone."""
    out = tmp_path / "run"
    for file in (*(run / "predictions").glob("vanilla*"), *(run / "measures").glob("vanilla*")):
        (out / file.parent.name).mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        if file.suffix == ".jsonl" and left == "half":
            content = content[:-9999]
        if file.suffix == ".jsonl" and left == "measured":
            lines = [json.loads(x) for x in content.splitlines() if b'"log_probs"' in x]
            content = b"".join(json_line(x).encode() for x in lines if x["set"] in (*SETS, "strangers"))
            content += b"".join(
                json_line({k: v for k, v in x.items() if k != "given"}).encode() for x in lines if x["set"] == "members"
            )
        if not (left == "answers" and file.parent.name == "measures"):
            (out / file.parent.name / file.name).write_bytes(content)
    evaluate(EvaluationRequest({"vanilla": checkpoints["vanilla"]}, data, data.subjects[:2]), out, resume=True)
    again = json.loads((out / "results.json").read_text())
    assert again["vanilla"] == results["vanilla"]
    for folder in ("predictions", "measures"):
        assert (out / folder / "vanilla.jsonl").read_bytes() == (run / folder / "vanilla.jsonl").read_bytes()
    with pytest.raises(BadInput, match="another model, data set or request"):
        evaluate(EvaluationRequest({"vanilla": checkpoints["unlearned"]}, data, data.subjects[:2]), out, resume=True)
    with pytest.raises(BadInput, match="another model, data set or request"):
        evaluate(EvaluationRequest({"vanilla": checkpoints["vanilla"]}, data, data.subjects[1:2]), out, resume=True)


def test_every_model_is_asked_everything_once_and_loaded_once(
    run: Path, data: UnlearnData, checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers and measures stand in one file of records; predictions are a view of it."""
    loads, asked = Counter[str](), Counter[int]()

    def load(opened: Loaded) -> Loaded:
        loads[str(opened.folder.path)] += 1
        return with_weights(opened)

    def noted(one: MeasuredQuestion, *rest: Any) -> Line:
        asked[one.number] += 1
        return line(one, *rest)

    monkeypatch.setattr(measuring, "with_weights", load)
    monkeypatch.setattr(measuring, "line", noted)
    models = {role: checkpoints[role] for role in ("vanilla", "unlearned")}
    evaluate(EvaluationRequest(models, data, data.subjects[:2]), tmp_path / "run")
    assert loads == dict.fromkeys(models.values(), 1)
    assert set(asked.values()) == {2}
    records = list(read_lines(tmp_path / "run/measures/vanilla.jsonl"))
    assert {x["request"] for x in records} == set(asked)
    said = [x["given"] for x in sorted(records, key=lambda x: x["request"]) if "given" in x]
    assert said == [x["prediction"] for x in read_lines(run / "predictions/vanilla.jsonl")]


def test_answers_about_one_subject_are_clustered_by_picture() -> None:
    """A request about one person: six questions about a picture are right or wrong together."""

    def scored(subjects: Sequence[str], pictures: int) -> dict[str, Any]:
        lines = [
            {
                "set": "forget",
                "split": "test",
                "probe": "fact",
                "subject": subject,
                "image": f"{subject} {picture}",
                "question": f"question {question}",
                "prediction": "a",
                "correct": picture % 2 == 0,
            }
            for subject in subjects
            for picture in range(pictures)
            for question in range(6)
        ]
        return dict(score(lines, (), {})["forget"]["test"])

    one, two = scored(["ada"], 8), scored(["ada", "bob"], 4)
    width = {name: cell["high"] - cell["low"] for name, cell in {"one": one, "two": two}.items()}
    independent = share([True, False] * 24, [str(i) for i in range(48)])
    assert one["value"] == two["value"] == independent["value"] == 0.5
    assert 0.6 < width["one"] < 0.9  # eight pictures
    assert independent["high"] - independent["low"] < 0.3  # control: forty-eight answers each by itself
    assert width["one"] == pytest.approx(
        (together := share([True, False] * 4, [str(i) for i in range(8)]))["high"] - together["low"], rel=0.05
    )
