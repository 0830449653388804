"""The engine: what a plain loop says, one question at a time, whatever stands beside it in a batch."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from conftest import NewCheckpoint

from unsee.data.examples import Example, ImageSource, UnlearnData
from unsee.errors import BadInput
from unsee.evaluation import engine, predict
from unsee.evaluation.engine import Engine, EngineReply, EngineRequest, Prompt, Sheets, answers, batches, greedy, rows
from unsee.evaluation.engine.rows import Beginning, Seen, Text, Tree, chunks, text_rows
from unsee.evaluation.predict import generate
from unsee.evaluation.questions import Question
from unsee.journal import Journal
from unsee.models.batching import Batcher, answer_scores
from unsee.models.families import FAMILIES
from unsee.models.loading import Loaded, load_model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, new_checkpoint: NewCheckpoint) -> Loaded:
    return load_model(str(new_checkpoint(family=request.param)))


@pytest.fixture(scope="module")
def questions(ragged_people: UnlearnData) -> list[Example]:
    """About pictures of several sizes, about two pictures at once, and without any."""
    pictured = ragged_people.test.pictured.examples[:24:2]
    pictures = list(ragged_people.test.pictures)
    two = [dataclasses.replace(e, others=(pictures[5 - i],)) for i, e in enumerate(pictured[:3])]
    return [*pictured, *two, *ragged_people.train.text_only.examples[:4]]


def plainly(loaded: Loaded, asked: Sequence[Example], longest: int = 4) -> list[str]:
    return [text for e in asked for text in generate(loaded, [e], longest)]


def asked_all(loaded: Loaded, requests: Sequence[EngineRequest], longest: int = 4) -> list[EngineReply]:
    run = Engine(loaded, requests, longest)
    found = {number: reply for batch in run.batches for number, reply in zip(batch, run.run(batch), strict=True)}
    return [found[number] for number in range(len(requests))]


def others(e: Example) -> tuple[str, ...]:
    return tuple(choice for choice in e.choices if choice != e.answer)


# Answers --------------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_a_plain_loop(model: Loaded, questions: list[Example]) -> None:
    expected = plainly(model, questions)
    assert answers(model, questions, 4) == expected
    assert len(set(expected)) > 10  # control: had all the same answer, none could be given to the wrong question
    assert answers(model, questions[::-1], 4) != expected


def test_answers_read_off_the_tree_are_the_same(model: Loaded, questions: list[Example]) -> None:
    """Those that are weighed are what the model says to every second question; the rest it has to generate."""
    expected = plainly(model, questions)
    told = [
        EngineRequest(e, (said,) if i % 2 else ()) for i, (e, said) in enumerate(zip(questions, expected, strict=True))
    ]
    assert [reply.given for reply in asked_all(model, told)] == expected
    assert not any(r.given for r in asked_all(model, [dataclasses.replace(request, spoken=False) for request in told]))


def test_an_answer_in_the_tree_is_not_generated(
    loaded: Loaded, people: UnlearnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = people.test.pictured.examples[0]
    weights = loaded.model.get_output_embeddings().weight
    with torch.no_grad():
        weights.zero_()
        weights[loaded.batcher.tokenizer.eos_token_id] = 1e-3  # says nothing, unless its states are negative
    silent = generate(loaded, [e], 4)[0] == ""
    generated: list[int] = []
    original = engine._generated

    def spy(loaded: Loaded, seen: Seen, prompts: Sequence[Prompt], most: int) -> list[list[int]]:
        generated.append(len(prompts))
        return original(loaded, seen, prompts, most)

    monkeypatch.setattr(engine, "_generated", spy)
    [reply] = asked_all(loaded, [EngineRequest(e)])
    assert reply.given == generate(loaded, [e], 4)[0]
    assert generated == [0 if silent else 1]


def test_the_padding_of_prompts_matters_and_is_done_right(
    loaded: Loaded, people: UnlearnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: with positions counted over the padding too, answers change."""
    asked = list({e.question: e for e in people.test.pictured}.values())
    asked += [dataclasses.replace(e, question=f"{e.question} {e.question} {e.question}") for e in asked]
    expected = plainly(loaded, asked)
    assert answers(loaded, asked, 4) == expected
    original = Beginning.places
    monkeypatch.setattr(
        Beginning, "places", lambda self, depths: original(self, 7 * torch.arange(depths.shape[1]).expand_as(depths))
    )
    assert answers(loaded, asked, 4) != expected


def test_checkpoints_that_ask_for_more_than_greedy_answers_are_asked_plainly(
    loaded: Loaded, people: UnlearnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert greedy(loaded.model)
    loaded.model.generation_config.update(temperature=0.1, top_k=1, eos_token_id=[3, 5])
    assert greedy(loaded.model)
    assert asked_all(loaded, [EngineRequest(people.test.examples[0])])[0].given is not None
    for setting, value in (("repetition_penalty", 1.05), ("no_repeat_ngram_size", 2), ("min_new_tokens", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(loaded.model.generation_config, setting, value)
            assert not greedy(loaded.model)
            assert asked_all(loaded, [EngineRequest(people.test.examples[0])])[0].given is None


def test_predictions_are_the_same_either_way(
    model: Loaded, questions: list[Example], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Question(e, "test", "retain") for e in questions if not e.others]
    used: list[int] = []

    def spy(loaded: Loaded, examples: Sequence[Example], longest: int) -> list[str]:
        used.append(len(examples))
        return answers(loaded, examples, longest)

    monkeypatch.setattr(predict, "answers", spy)
    fast = predict.predict(model, "x", asked, (), Journal(tmp_path / "fast.jsonl", {}), resume=False)
    assert sum(used) == len(asked)
    monkeypatch.setattr(predict, "greedy", lambda _: False)
    assert predict.predict(model, "x", asked, (), Journal(tmp_path / "plain.jsonl", {}), resume=False) == fast
    assert sum(used) == len(asked)


# Likelihoods ----------------------------------------------------------------------------------------------------------


def alone(loaded: Loaded, e: Example, answer: str) -> dict[str, list[float]]:
    """One answer in one row, by the textbook."""
    with torch.no_grad():
        scores, targets, _ = answer_scores(
            loaded.model, loaded.batcher.for_training([dataclasses.replace(e, answer=answer)])
        )
    p = scores.double().softmax(-1)
    mean = (p * p.log()).sum(-1)
    return {
        "log_probs": p.gather(1, targets[:, None])[:, 0].log().tolist(),
        "hits": (scores.argmax(-1) == targets).tolist(),
        "expected": mean.tolist(),
        "spread": ((p * p.log() ** 2).sum(-1) - mean**2).sqrt().tolist(),
    }


def agrees(loaded: Loaded, requests: Sequence[EngineRequest], replies: Sequence[EngineReply]) -> bool:
    for request, reply in zip(requests, replies, strict=True):
        assert list(reply.weighed) == [request.example.answer, *request.others]
        for answer, weighed in reply.weighed.items():
            for what, values in alone(loaded, request.example, answer).items():
                if getattr(weighed, what) != pytest.approx(values, abs=1e-4):
                    return False
    return True


def test_likelihoods_are_those_of_one_answer_at_a_time(model: Loaded, questions: list[Example]) -> None:
    requests = [EngineRequest(e, others(e)) for e in questions[::3]]
    assert agrees(model, requests, asked_all(model, requests))


def test_a_token_sees_its_own_text_only(
    loaded: Loaded, questions: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: were it to see the whole row before it, likelihoods would change."""
    requests = [EngineRequest(e, others(e)) for e in questions[:3]]
    sees_all = property(lambda self: torch.ones(len(self.tokens), len(self.tokens)).tril().bool())
    monkeypatch.setattr(Tree, "sees", sees_all)
    assert not agrees(loaded, requests, asked_all(loaded, requests))


@pytest.mark.parametrize(("tree", "room"), [(1, 1), (20, 60), (64, 1 << 14)])
def test_the_size_of_batches_changes_nothing(
    model: Loaded, questions: list[Example], monkeypatch: pytest.MonkeyPatch, tree: int, room: int
) -> None:
    requests = [EngineRequest(e, others(e)) for e in questions[::4]]
    expected = asked_all(model, requests)
    monkeypatch.setattr(rows, "TREE", tree)
    monkeypatch.setattr(rows, "ROOM", room)
    monkeypatch.setattr(engine, "SCORES", 1)
    for reply, other in zip(asked_all(model, requests), expected, strict=True):
        assert reply.given == other.given
        for answer, weighed in reply.weighed.items():
            assert weighed.log_probs == pytest.approx(other.weighed[answer].log_probs, abs=1e-4)
            assert weighed.hits == other.weighed[answer].hits


def test_no_pass_is_larger_than_the_room(loaded: Loaded, people: UnlearnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROOM", 300)
    pictures = people.test.pictures
    seen, sheets = Seen.of(loaded, list(pictures)), Sheets(loaded.batcher)
    asked = [sheets.of([EngineRequest(e, others(e)) for e in group], speaks=False).rows for group in pictures.values()]
    sheeted = [((number,), rows) for number, rows in enumerate(asked)]
    sizes = [c.ids.shape[0] * (c.ids.shape[1] + c.beginning.ids.shape[1]) for c in chunks(loaded, seen, sheeted)]
    assert 150 < max(sizes) <= 300 < sum(sizes)


# Batches --------------------------------------------------------------------------------------------------------------


def test_every_picture_is_looked_at_once(loaded: Loaded, people: UnlearnData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[ImageSource] = Counter()
    original = Batcher.images

    def spy(self: Batcher, sources: Sequence[ImageSource]) -> dict[str, torch.Tensor]:
        seen.update(sources)
        return original(self, sources)

    monkeypatch.setattr(Batcher, "images", spy)
    monkeypatch.setattr(engine, "PICTURES", 3)
    asked_all(loaded, [EngineRequest(e, others(e)) for e in people.test.pictured])
    assert set(seen.values()) == {1}
    assert len(seen) == len(people.test.pictures)
    generate(loaded, people.test.pictured.examples, 4)
    assert max(seen.values()) > 2  # control: the plain way shows it with each question


def test_batches_hold_every_question_once_and_are_of_one_kind(
    questions: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PICTURES", 2)
    monkeypatch.setattr(engine, "TEXTS", 3)
    parts = batches(questions)
    assert sorted(number for part in parts for number in part) == list(range(len(questions)))
    assert len(parts) > 4
    for part in parts:
        shown = [questions[number].images for number in part]
        assert len({bool(images) for images in shown}) == 1
        assert len({image for images in shown for image in images}) <= 2
        assert shown[0] or len(part) <= 3


def test_a_tree_holds_shared_beginnings_once() -> None:
    tree = Tree()
    texts = [(1, 2, 3), (1, 2, 4), (2, 3), (1, 2, 3, 5)]
    nodes = [tree.grow(text) for text in texts]
    assert len(tree.tokens) == 3 + 1 + 2 + 1
    sees = tree.sees
    for text, path in zip(texts, nodes, strict=True):
        assert [tree.tokens[node] for node in path] == list(text)
        assert sees[path[-1]].nonzero()[:, 0].tolist() == sorted(path)
        assert [tree.depths[node] for node in path] == list(range(len(text)))
    assert tree.after(nodes[0][1], 4) == nodes[1][2]
    assert tree.after(nodes[0][1], 9) is None


def test_an_answer_right_behind_its_picture_is_refused(loaded: Loaded, people: UnlearnData) -> None:
    mark = loaded.batcher.tokenizer.convert_tokens_to_ids("<image>")
    with pytest.raises(BadInput, match="prompt ends with its picture"):
        text_rows([Text((mark,), (7, 8), 2)])
    assert text_rows([Text((mark,), (7, 8), 1)])


def test_the_longest_answer_bounds_what_is_said(loaded: Loaded, people: UnlearnData) -> None:
    asked: list[Example] = list(people.test.pictured.examples[:4])
    said = {longest: answers(loaded, asked, longest) for longest in (1, 9)}
    assert said == {longest: plainly(loaded, asked, longest) for longest in (1, 9)}
    assert said[1] != said[9]  # control: random models do not end by themselves
