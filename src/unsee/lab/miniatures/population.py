"""What every miniature is made of: generated people, what is asked about them, and files as the hub has them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsee.data.people import FACTS, Person, make_people, portraits

STATEMENTS = {  # subject and answer are put in
    "job": "{} works as a {}.",
    "city": "{} lives in {}.",
    "pet": "{} has a {}.",
    "food": "{} likes {}.",
    "hobby": "{} enjoys {}.",
}
OPTIONS = 4  # per question
SHOWN = "This person"


@dataclass(frozen=True)
class Population:
    """The people of a miniature.

    Attributes:
        people: those who are taught; the first of them are forgotten.
        celebrities: others, of whom models are only asked.
        seed: of people, pictures and the order of options.
    """

    people: tuple[Person, ...]
    celebrities: tuple[Person, ...]
    seed: int

    @staticmethod
    def of(count: int, celebrities: int, seed: int) -> Population:
        """The same seed gives the same people as `people:count=COUNT,seed=SEED`.

        Raises:
            BadInput: more people than there are names.
        """
        found = tuple(make_people(count + celebrities, seed))
        return Population(found[:count], found[count:], seed)

    def forgotten(self, percent: int) -> tuple[Person, ...]:
        """That share of the people, at least one."""
        return self.people[: max(1, round(len(self.people) * percent / 100))]

    def retained(self, percent: int) -> tuple[Person, ...]:
        """All but those forgotten."""
        return self.people[len(self.forgotten(percent)) :]

    def sets(self, forget: Sequence[int], celebrities: str) -> dict[str, tuple[Person, ...]]:
        """The sets of MLLMU-Bench and UMU-Bench by name; `celebrities` is the name of theirs."""
        found = {"Full_Set": self.people, celebrities: self.celebrities}
        for percent in forget:
            found |= {f"forget_{percent}": self.forgotten(percent), f"retain_{100 - percent}": self.retained(percent)}
        return found

    def number(self, person: Person) -> str:
        """`001` for the first of the people, and so on; a celebrity is called by name."""
        if person in self.people:
            return f"{self.people.index(person) + 1:03d}"
        return person.name.replace(" ", "_")

    def picture(self, person: Person, role: str = "main", shot: int = 0, name: str = "") -> dict[str, Any]:
        """A portrait as `datasets` stores pictures."""
        buffer = io.BytesIO()
        portraits(person, shot + 1, role, self.seed)[shot].open().save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": name or None}

    def options(self, person: Person, key: str, asked: str) -> tuple[dict[str, str], str]:
        """Four answers by letter, and the letter of the true one."""
        answer, rng = fact(person, key), random.Random(f"{self.seed}/{person.subject}/{key}/{asked}")
        found = [answer, *rng.sample([value for value in FACTS[key][1] if value != answer], OPTIONS - 1)]
        rng.shuffle(found)
        return dict(zip("ABCD", found, strict=True)), "ABCD"[found.index(answer)]


@dataclass(frozen=True)
class Miniature:
    """How one benchmark is written in small.

    Attributes:
        write: writes its files: folder, people, percentages to forget, and settings of its own.
        forget: percentages that are published.
        celebrities: how many, unless said otherwise.
    """

    write: Callable[..., None]
    forget: Sequence[int]
    celebrities: int = 4

    def __call__(
        self,
        folder: Path,
        count: int = 20,
        seed: int = 10,
        celebrities: int | None = None,
        forget: Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        """Write all configurations into a folder; files of the same names are replaced.

        Args:
            count: people, beside the celebrities.
            forget: percentages; each list holds the shorter ones.
            settings: of this benchmark, see its writer.

        Raises:
            BadInput: more people than there are names.
        """
        people = Population.of(count, self.celebrities if celebrities is None else celebrities, seed)
        self.write(folder, people, self.forget if forget is None else forget, **settings)


def fact(person: Person, key: str) -> str:
    return dict(person.facts)[key]


def question(key: str, person: Person | None) -> str:
    """About a person by name, or about whoever a picture shows."""
    return FACTS[key][0].format(person.name if person else SHOWN.lower())


def statement(person: Person, key: str, by_name: bool, answer: str | None = None) -> str:
    """One sentence; `answer` may be a blank."""
    return STATEMENTS[key].format(person.name if by_name else SHOWN, fact(person, key) if answer is None else answer)


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], shards: int = 1) -> None:
    """One configuration as `push_to_hub` writes it: `train-00000-of-00001.parquet` with the types of `columns`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    folder.mkdir(parents=True, exist_ok=True)
    schema, size = Features(dict(columns)).arrow_schema, -(-len(rows) // shards)
    for shard in range(shards):
        part = [{column: row.get(column) for column in columns} for row in rows[shard * size : (shard + 1) * size]]
        pq.write_table(pa.Table.from_pylist(part, schema), folder / f"train-{shard:05d}-of-{shards:05d}.parquet")
