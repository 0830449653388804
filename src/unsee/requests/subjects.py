"""Subjects and pictures in a ledger without names and photographs: keyed hashes, with one random key per ledger.

An unkeyed hash of a name is no secret, for names can be listed and tried. With HMAC-SHA-256 (RFC 2104) they can be
tried only by who has the key, here called salt, and the same person has another hash in every ledger. Whoever has the
salt can still try names: hashes are pseudonyms, not anonymous, until the salt is destroyed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unsee.data.examples import SPLITS, ImageSource, UnlearnData, shown_by
from unsee.data.pictures import FileImage
from unsee.data.rows import TableImage
from unsee.errors import BadInput
from unsee.requests.ledger import SALT, Ledger
from unsee.storage import write_durably

KIND = "salt"  # of the record that says which salt a ledger was made with
BYTES = 32
LETTERS = 3  # a name of fewer letters and digits is no name that a text could give away


class NoLongerTestable(BadInput):
    """What a request is about is not there any more: it can be neither verified nor carried out again."""


@dataclass(frozen=True)
class Salt:
    """The key of a ledger's hashes.

    Attributes:
        value: `BYTES` random bytes; not shown when printed.
    """

    value: bytes = field(repr=False)

    @property
    def check(self) -> str:
        """What the ledger keeps of it, to recognise it by: a hash of so many random bytes gives nothing away."""
        return self._hash(b"salt", b"")

    def subject(self, name: str) -> str:
        """Pseudonym of a subject: hexadecimal HMAC of its key in the data, whatever its case and white space."""
        return self._hash(b"subject", _normalised(name).encode())

    def find(self, data: UnlearnData, pseudonyms: Iterable[str]) -> tuple[str, ...]:
        """The subjects of `data` with these pseudonyms, in the order of the data; absent ones are left out.

        Raises:
            BadInput: two subjects differ in case or white space alone.
        """
        wanted = frozenset(pseudonyms)
        found: dict[str, str] = {}
        for subject in data.subjects:
            pseudonym = self.subject(subject)
            if pseudonym in wanted and pseudonym in found:
                raise BadInput(
                    f"{data.source}: subjects '{found[pseudonym]}' and '{subject}' differ in case or white space alone "
                    "and cannot be told apart in a ledger; rename one"
                )
            if pseudonym in wanted:
                found[pseudonym] = subject
        return tuple(found.values())

    def pictures(self, pictures: Iterable[ImageSource]) -> str:
        """One keyed hash over all pictures, in whatever order: changes if one is added, removed or altered.

        A picture in a file or table counts as it is stored, byte for byte: what decoders make of it changes with their
        versions. A generated one counts by its pixels.

        Raises:
            BadInput: one cannot be read.
        """
        return self._hash(b"pictures", "".join(sorted(self._hash(b"picture", _content(p)) for p in pictures)).encode())

    def _hash(self, what: bytes, content: bytes) -> str:
        return hmac.new(self.value, what + b"\n" + content, hashlib.sha256).hexdigest()


def salt_of(ledger: Ledger, create: bool = False) -> Salt:
    """The salt beside a ledger: `SALT`, 64 hexadecimal digits and a newline, for its owner's eyes only.

    Args:
        create: make one if the ledger has none yet, once and for all.

    Raises:
        NoLongerTestable: it was there and is gone. BadInput: it is another than the ledger was made with, cannot be
            read, or there is none yet.
    """
    file = ledger.folder / SALT
    if create and not _checks(ledger):
        with ledger.locked():
            if not _checks(ledger):  # nobody else was faster
                if not file.exists():  # else made by a process that was killed before it could note it down
                    write_durably(file, secrets.token_bytes(BYTES).hex().encode() + b"\n", private=True)
                ledger.append(KIND, {"check": _read(ledger).check})
    kept = _checks(ledger)
    if not kept:
        raise BadInput(f"{ledger.path}: has no salt yet; add a first request")
    salt = _read(ledger)
    if kept != [salt.check]:
        raise BadInput(f"{file}: not the salt this ledger was made with; restore it from a copy")
    return salt


def _checks(ledger: Ledger) -> list[object]:
    return [record.content.get("check") for record in ledger.records if record.kind == KIND]


def _read(ledger: Ledger) -> Salt:
    file = ledger.folder / SALT
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise NoLongerTestable(
            f"{file}: gone, so all requests of this ledger are no longer testable; restore it from a copy"
        ) from error
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror}); check permissions") from error
    if not re.fullmatch(rb"[0-9a-f]{%d}\n" % (2 * BYTES), content):
        raise BadInput(f"{file}: expected {2 * BYTES} hexadecimal digits and a newline; restore it from a copy")
    return Salt(bytes.fromhex(content.decode("ascii")))


def forget_pictures(data: UnlearnData, subjects: Sequence[str]) -> tuple[ImageSource, ...]:
    """All pictures that questions about these subjects are about, of all three splits, each once."""
    return tuple(dict.fromkeys(picture for split in SPLITS for picture in data.split(split).of(subjects).pictures))


def name_within(text: str, data: UnlearnData, subjects: Iterable[str]) -> str | None:
    """The first of these subjects whose key or name stands in a text, whatever stands between its words."""
    for subject in subjects:
        for name in (subject, data.names.get(subject, subject)):
            words = _words(name)
            if len(words.replace(" ", "")) >= LETTERS and f" {words} " in f" {_words(text)} ":
                return subject
    return None


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", _normalised(text)))


def _normalised(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _content(picture: ImageSource) -> bytes:
    if isinstance(picture, FileImage | TableImage):
        return picture.encoded()
    return shown_by(picture.open())
