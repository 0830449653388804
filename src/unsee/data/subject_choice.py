"""What a SUBJECTS argument means: names, lists and files of names, how many. What fits two things is refused."""

from __future__ import annotations

import os
import random
import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from unsee.errors import BadInput

MEANINGS = 4  # of one comma list, kept apart while it is read: two are too many already


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


@dataclass(frozen=True)
class _Meaning:
    """One thing that an argument may mean.

    Attributes:
        typed: how to write it so that it means nothing else.
        about: what it is, for messages.
    """

    subjects: tuple[str, ...]
    typed: str
    about: str


@dataclass(frozen=True)
class Choice:
    """Resolves SUBJECTS against the subjects of a data set. Texts are compared as NFC, without space around them.

    Attributes:
        subjects: in order; an argument may say a subject itself, case counts.
        names: subject -> name; an argument may say that instead, in any case.
        source: the DATA argument, for messages.
        seed: decides `random:N`.
        option: where the argument was given, for messages.
    """

    subjects: Sequence[str]
    names: Mapping[str, str]
    source: str
    seed: int = 0
    option: str = "--forget"

    def of(self, wanted: str | Sequence[str]) -> tuple[str, ...]:
        """All subjects of one argument or of several, each once, in the order given.

        Raises:
            BadInput: an argument that means nobody, or two things; both are spelled out.
        """
        if not isinstance(wanted, Sequence) or not all(isinstance(one, str) for one in wanted):
            raise BadInput(f"{self.option}: {wanted!r}; expected a text, or texts in an order: a list, no set")
        given = [wanted] if isinstance(wanted, str) else list(wanted)
        found = [subject for one in given for subject in self._one(one)]
        if not found:
            said = f" '{given[0]}'" if given else ""
            raise BadInput(f"{self.option}{said}: no subject given; expected names, @file, first:N or random:N")
        return tuple(dict.fromkeys(found))

    def _one(self, wanted: str) -> tuple[str, ...]:
        if not wanted.replace(",", "").strip():
            return ()
        found = [*self._listed(wanted), *self._counted(wanted)]
        path = os.path.expanduser(wanted.strip()[1:]) if wanted.strip().startswith("@") else ""
        filed = os.path.exists(path)
        if len(found) + filed > 1:
            ways = [f"{one.typed} for {one.about}" for one in found]
            here = "/." if os.path.isabs(path) else "./"
            ways += [f"{self.option} @{here}{path} for those in that file"] if filed else []
            raise BadInput(f"{self.option} '{wanted}' means two things: write {', or '.join(ways)}")
        if found:
            return found[0].subjects
        return self._filed(path) if filed else self._unknown(wanted)

    # What each form may mean ------------------------------------------------------------------------------------------

    def _called(self, text: str) -> tuple[str, ...]:
        """The subjects that a text names, as themselves or by their names."""
        key = _key(text)
        itself, named = self._spelled
        return tuple(dict.fromkeys((*itself.get(key, ()), *named.get(key.lower(), ()))))

    @cached_property
    def _spelled(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        itself: dict[str, list[str]] = {}
        named: dict[str, list[str]] = {}
        for subject in self.subjects:
            itself.setdefault(_key(subject), []).append(subject)
            if subject in self.names:
                named.setdefault(_key(self.names[subject]).lower(), []).append(subject)
        return itself, named

    def _listed(self, wanted: str) -> Iterator[_Meaning]:
        """As one subject, or as a list of them: wherever commas can stand between known ones."""
        found: dict[tuple[str, ...], tuple[str, ...]] = {}
        for texts in self._divided(wanted):
            found.setdefault(tuple(self._only(text) for text in texts), texts)
        for subjects, texts in found.items():
            if len(found) == 1:
                yield _Meaning(subjects, self._typed(subjects), "the subjects")
            elif len(subjects) == 1:
                yield _Meaning(subjects, self._typed(subjects), f"one subject, '{subjects[0]}'")
            else:
                yield _Meaning(subjects, self._typed(subjects), f"the {len(texts)} subjects {' | '.join(texts)}")

    def _divided(self, wanted: str) -> list[tuple[str, ...]]:
        """The ways to divide a text at commas into texts that name somebody, at most `MEANINGS`."""
        parts = wanted.split(",")
        longest = 1 + max(known.count(",") for spelled in self._spelled for known in spelled)
        ways: list[list[tuple[str, ...]]] = [[] for _ in parts] + [[()]]
        for i in reversed(range(len(parts))):
            found = list(ways[i + 1]) if not parts[i].strip() else []
            for j in range(i + 1, min(i + longest, len(parts)) + 1):
                text = ",".join(parts[i:j]).strip()
                if text and self._called(text):
                    found += [(text, *rest) for rest in ways[j]]
            ways[i] = found[:MEANINGS]
        return [way for way in ways[0] if way]

    def _counted(self, wanted: str) -> Iterator[_Meaning]:
        """As `first:N` or `random:N`, with a number that fits."""
        rule, _, number = wanted.strip().partition(":")
        if rule not in ("first", "random") or not re.fullmatch("[0-9]{1,9}", number):
            return
        if not 0 < int(number) < len(self.subjects):
            return
        order = list(self.subjects)
        if rule == "random":
            random.Random(f"{self.seed}/forget").shuffle(order)
        typed = f"{rule}:0{number}"
        while self._called(typed):
            typed = typed.replace(":", ":0")
        yield _Meaning(tuple(order[: int(number)]), f"{self.option} {typed}", f"the {rule} {int(number)}")

    def _filed(self, path: str) -> tuple[str, ...]:
        """As `@FILE`: each line literally one subject or name."""
        found = []
        for number, line in enumerate(self._lines(path), 1):
            if line.strip():
                where = f"@{path}, line {number}: "
                if not self._called(line):
                    raise BadInput(f"{self.option} {where}{self._nobody(line.strip())}")
                found.append(self._only(line, where))
        if not found:
            raise BadInput(f"{self.option} @{path}: no subject given; expected one name per line")
        return tuple(found)

    def _lines(self, path: str) -> list[str]:
        try:
            with open(path, encoding="utf-8-sig") as file:
                return list(file)
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.option} @{path}: cannot read the file as UTF-8 text ({error})") from error

    # Messages ---------------------------------------------------------------------------------------------------------

    def _only(self, text: str, where: str = "") -> str:
        """The one subject that a text names.

        Raises:
            BadInput: there are two.
        """
        found = self._called(text)
        if len(found) == 1:
            return found[0]
        who = {one: f"'{one}', called '{self.names.get(one, one)}'" for one in found}
        ways = ", or ".join(f"{self.option} {self._alone(one)} for {said}" for one, said in who.items())
        mend = f"write {ways}" if all(map(self._alone, found)) else f"{' and '.join(who.values())}; rename one of them"
        raise BadInput(f"{self.option} {where}'{text.strip()}' means {len(found)} subjects: {mend}")

    def _alone(self, subject: str) -> str | None:
        """A text that names this subject and no other, quoted for a shell; None if there is none."""
        for text in (subject, self.names.get(subject, subject)):
            if self._called(text) == (subject,):
                plain = "," not in text and not text.startswith("@") and not next(self._counted(text), None)
                return shlex.quote(text) if plain else f"@FILE with the line {text}"
        return None

    def _typed(self, subjects: Sequence[str]) -> str:
        return " ".join(f"{self.option} {self._alone(subject) or repr(subject)}" for subject in subjects)

    def _unknown(self, wanted: str) -> tuple[str, ...]:
        """Raises BadInput for an argument that means nobody."""
        rule, _, number = wanted.strip().partition(":")
        if rule in ("first", "random") and number:
            most = len(self.subjects) - 1
            raise BadInput(f"{self.option} {wanted[:40]}: expected a number from 1 to {most} after '{rule}:'")
        if wanted.strip().startswith("@"):
            self._lines(os.path.expanduser(wanted.strip()[1:]))
        parts = [part.strip() for part in wanted.split(",") if part.strip()]
        unknown = next((part for part in parts if not self._called(part)), wanted)
        commas = f"; for a name with a comma give {self.option} @FILE, one name per line" if len(parts) > 1 else ""
        raise BadInput(f"{self.option}: {self._nobody(unknown)}{commas}")

    def _nobody(self, text: str) -> str:
        return f"unknown subject '{text}' in {self.source}; known subjects begin with {', '.join(self.subjects[:5])}"
