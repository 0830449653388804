"""What a pocket model is taught besides a benchmark's own training data: its questions as the protocols put them.

A pocket is no assistant: it answers in forms it has been taught and in no other. Public models know multiple choice,
blanks and worked examples from their instruction tuning; a pocket learns them here, on the benchmark's own people. The
protocol is asked again and again, each time of one training picture per person, with other options in another order,
and with other people's questions as worked examples. So a score says whether a person is recognised and whether a fact
is known; it says nothing of understanding a form.

Our construction. Pictures that are scored but not trained on (validation, test, views) stand in no lesson; celebrities
and general knowledge are not taught either.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unsee.data.benchmarks import BENCHMARKS, BenchmarkData, BenchmarkItem, read_benchmark
from unsee.data.examples import ImageSource, Split, UnlearnData
from unsee.evaluation.protocols import MODES, PROTOCOLS, question_text
from unsee.evaluation.protocols.wording import options

ROUNDS = 12  # times that the protocol is asked again in each mode: a multiple of the options, see `_redrawn`


@dataclass(frozen=True)
class Lessons:
    """What a benchmark's pocket is taught and asked beyond the data it is built on.

    Attributes:
        plain: each question by itself, about one training picture or in text.
        asked: the same as the protocol puts them, which is with worked examples in front on MLLMU-Bench.
        scored: all that the protocol scores, for the words of the vocabulary; nothing is taught of it.
    """

    plain: Split
    asked: Split
    scored: Split

    @property
    def few_shot(self) -> bool:
        """Whether any question has worked examples in front."""
        return self.plain != self.asked

    def worded(self, data: UnlearnData) -> UnlearnData:
        """The data with the words of all lessons and questions in it, to make a vocabulary from."""
        return replace(data, train=Split((*data.train, *self.plain, *self.asked, *self.scored)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every word, and over whom each lesson is about and which of all pictures it shows."""
        number: dict[ImageSource, int] = {}
        digest = hashlib.sha256()
        for split in (self.plain, self.asked, self.scored):
            for e in split:
                shown = [number.setdefault(image, len(number)) for image in e.images]
                digest.update(repr((e.question, e.answer, e.subject, shown)).encode())
        return digest.hexdigest()


def benchmark_lessons(data: UnlearnData) -> Lessons | None:
    """The lessons of a benchmark's data, read again from where it came; None for data of another kind.

    Raises:
        BadInput: the benchmark is no longer there.
    """
    name, _, spec = data.source.partition(":")
    return lessons_of(name, read_benchmark(name, spec), data) if name in BENCHMARKS else None


def lessons_of(name: str, benchmark: BenchmarkData, data: UnlearnData) -> Lessons:
    """The lessons of a benchmark.

    Args:
        name: a key of `BENCHMARKS`.
        data: says who is taught, and which pictures of them.
    """
    ask = PROTOCOLS[name].ask
    plain, shown = [], []
    for number in range(ROUNDS):
        again = BenchmarkData(benchmark.source, tuple(_redrawn(benchmark, data, number)), ())
        for mode in MODES:
            for asked in ask(again, mode, number):
                shown.append(asked.example(name))
                plain.append(replace(asked, text=question_text(name, asked.item, mode), shots=()).example(name))
    scored = [asked.example(name) for mode in MODES for asked in ask(benchmark, mode, 0)]
    return Lessons(Split(tuple(plain)), Split(tuple(shown)), Split(tuple(scored)))


def _redrawn(benchmark: BenchmarkData, data: UnlearnData, number: int) -> Iterator[BenchmarkItem]:
    """The questions about those who are taught, with one training picture each, and with other options."""
    taught = set(data.train.subjects)
    pictures: dict[str, list[ImageSource]] = {}
    for image, examples in data.train.pictures.items():
        pictures.setdefault(examples[0].subject, []).append(image)
    known = [item for item in benchmark.items if item.part != "test" and item.subject in taught]
    true: dict[tuple[object, ...], list[str]] = {}
    for item in known:
        true.setdefault(_sort(item), []).append(item.answer)
    for item in known:
        if item.images:
            shown = [image for image in pictures.get(item.subject, ()) if image in item.images]
            if not shown:
                continue  # about a picture that is scored only
            item = replace(item, images=(shown[number % len(shown)],))
        yield _other_options(item, true[_sort(item)], number) if item.kind == "classification" else item


def _sort(item: BenchmarkItem) -> tuple[object, ...]:
    """Questions that ask the same of different people: what is true of one is a false answer about another."""
    return item.kind, bool(item.images), item.question.replace(item.name, "") if item.name else item.question


def _other_options(item: BenchmarkItem, true: Sequence[str], number: int) -> BenchmarkItem:
    """A choice with other false answers; in as many rounds as there are options the true one is once at every place.

    False answers are drawn from what is true of others, as often as it is true, so that neither the letter nor the set
    of options tells the answer; where others have too few, the question's own are added.
    """
    letters, own = tuple(options(item)), [text for text in options(item).values() if text != item.answer]
    others = [text for text in true if text != item.answer]
    about = f"{item.subject}/{item.key}/{item.question}"
    draw = random.Random(f"{about}/{number}")
    false = dict.fromkeys([*draw.sample(others, len(others)), *draw.sample(own, len(own))])
    listed = list(false)[: len(letters) - 1]
    block, turn = divmod(number, len(letters))
    place = random.Random(f"{about}/places/{block}").sample(range(len(letters)), len(letters))[turn]
    listed.insert(place, item.answer)
    return replace(item, letters=letters, choices=tuple(listed), letter=letters[place])
