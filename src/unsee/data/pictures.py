"""Reading pictures as they come, and finding one picture that stands in two places.

Two pictures are the same if their 16 x 16 grey cells are: brightness taken out, and relative to contrast. Measured
distances, between all pairs of different pictures and between 300 pictures and their copies:

                                 nearest different   resized x0.5 ... 2   share of copies found at JPEG 95, 75, 50, 30
    traffic signs, 32 pixels                 0.111       at most 0.076                    100 %   83 %  68 %  40 %
    generated portraits, 48                  0.133       at most 0.084                    100 %   99 %  94 %  87 %
    the same drawn at 256                    0.237       at most 0.032                    100 %  100 % 100 %  99 %

The signs are photographs, many of them frames of one film: that small, a heavy compression changes more than half a
second of film does. A picture that is only near must never be refused, so `SAME` stays below all of the first column.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features
from scipy.fft import dctn
from scipy.spatial import cKDTree

from unsee.data.examples import PLACES, ImageSource, UnlearnData
from unsee.data.folder_listing import some
from unsee.errors import BadInput, one_line
from unsee.progress import track

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no other decoder is tried, whatever a file is called, but:
# AVIF and HEIC share a container with videos. The brands in its first bytes say which of them a file is.
BRANDS = dict.fromkeys((b"avif", b"avis"), "AVIF")
BRANDS |= dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1"), "HEIF")
HEAD = 64  # bytes of a file in which they stand
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".heics", ".heifs")  # Pillow knows the others' itself
MAX_PIXELS = 178_956_970  # what a header may promise; Pillow's own limit
LONGEST = 4096  # pixels; a longer side is reduced to this
SHORTEST = 2  # pixels
MAX_RATIO = 200  # of the sides; some models' processors refuse more

Place = tuple[str, str]  # subject, split
Look = tuple[NDArray[np.float32], NDArray[np.float32]]  # grey cells, mean colour

CELLS = 16  # per side, of the comparison
SAME = 0.08  # root mean square difference of the grey cells, in units of their standard deviation; see above
FLAT = 8.0  # of 255; less deviation than this is not magnified: it is noise
SAME_COLOUR = 8.0  # of 255, in each channel's mean; JPEG 30 moves it by 7

MOST = 20  # pairs of the same picture that one message names

COARSE = 4  # frequencies per axis by which candidates are found


@dataclass(frozen=True)
class FileImage:
    """A picture in a file, read as `decode` says."""

    path: str

    @property
    def label(self) -> str:
        return self.path

    def open(self) -> Image.Image:
        return decode(self.path, self.path)

    def encoded(self) -> bytes:
        """The file as it stands.

        Raises:
            BadInput: it cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise _unusable(self.path, str(error.strerror)) from error


def decode(picture: str | bytes, label: str) -> Image.Image:
    """A picture as a person sees it, as 8-bit RGB: upright by its EXIF, on white where transparent, first frame only.

    Args:
        picture: path of a file, or its content.
        label: how to call it in messages.

    Raises:
        BadInput: missing, empty, truncated, none of `FORMATS`, HEIC or AVIF without what reads them, 32 bits per
            channel, or a size that is refused: more than `MAX_PIXELS` (as the header says, nothing is decoded), a side
            below `SHORTEST`, longer than `MAX_RATIO` times the other.
    """
    try:
        with (
            open(picture, "rb") if isinstance(picture, str) else io.BytesIO(picture) as file,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # odd metadata is no reason to refuse, or to talk about, a sound picture
            head = file.read(HEAD)
            if not head:
                raise ValueError("the file is empty")
            file.seek(0)
            with Image.open(file, formats=_formats(head, label)) as image:
                _check_size(*image.size)
                shrink = LONGEST / max(image.size)
                image.draft(None, (ceil(image.width * shrink), ceil(image.height * shrink)))  # JPEG: decoded smaller
                ImageOps.exif_transpose(image, in_place=True)
                return _on_white(_reduced(_eight_bits(image)))
    except BadInput:
        raise
    except Exception as error:  # decoders meet damage with nearly any exception: struct.error, SyntaxError, ...
        reason = getattr(error, "strerror", None) or one_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"not one of {', '.join(FORMATS)}, HEIC, AVIF"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"more than {MAX_PIXELS:,} pixels"
        raise _unusable(label, reason) from error


def is_picture(path: str) -> bool:
    """Whether a file means to be a picture: it is called like one, or begins like one.

    Raw files of cameras begin like TIFF, and texts may begin like BMP; these two count by their names alone.

    Raises:
        BadInput: its format needs a package that is not there.
    """
    if os.path.splitext(path)[1].lower() in _suffixes():
        return True
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            formats = _formats(file.read(HEAD), path)
            file.seek(0)
            Image.open(file, formats=[kind for kind in formats if kind not in ("TIFF", "BMP")])  # the header alone
    except BadInput:
        raise
    except Image.DecompressionBombError:
        return True
    except Exception:  # of any decoder; neither its name nor its content says picture, so it is listed as not read
        return False
    return True


@lru_cache(maxsize=1)
def _suffixes() -> frozenset[str]:
    """The endings of names that mean one of our formats, as Pillow knows them."""
    known = (*FORMATS, "AVIF", "MPO")  # MPO: JPEGs of several frames
    return frozenset({*(end for end, kind in Image.registered_extensions().items() if kind in known), *HEIF_SUFFIXES})


def container(head: bytes) -> str | None:
    """AVIF or HEIF, by the first `HEAD` bytes of a file; None for all else, videos in the same container too."""
    if head[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(head[:4], "big"), HEAD)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size, 4))]
    found = [BRANDS[brand] for brand in brands if brand in BRANDS]
    return "AVIF" if "AVIF" in found else found[0] if found else None


def _formats(head: bytes, label: str) -> tuple[str, ...]:
    """The decoders to try.

    Raises:
        BadInput: the one that is needed is not installed.
    """
    kind = container(head)
    if kind == "AVIF" and not features.check("avif"):
        raise BadInput(f"{label}: is an AVIF picture, which this Pillow cannot read; pip install -U 'pillow>=11.3'")
    if kind == "HEIF":
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise BadInput(
                f"{label}: is a HEIC picture, which needs pillow-heif; pip install 'unsee[heif]', or save it as JPEG"
            ) from error
        register_heif_opener()
    return FORMATS if kind is None else (kind,)


def _unusable(label: str, reason: str) -> BadInput:
    return BadInput(f"{label}: cannot be read as a picture ({reason}); replace or remove the file")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:  # Pillow refuses as well, unless some other package has told it not to
        raise Image.DecompressionBombError
    if min(width, height) < SHORTEST:
        raise ValueError(f"{width} x {height} pixels, expected at least {SHORTEST} a side")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels, expected no side over {MAX_RATIO} times the other")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in a mode that can be reduced smoothly: L, LA, RGB or RGBA."""
    if image.mode in ("I", "F"):  # their range is anyone's guess, and Pillow would clip it silently
        raise ValueError("32 bits per channel, expected 8 or 16")
    if not image.mode.startswith("I;16"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
        return image if image.mode == mode else image.convert(mode)
    deep = np.asarray(image)  # Pillow would clip these too; of RGB with 16 bits it keeps the high byte, as done here
    if getattr(image, "tag_v2", {}).get(262) == 0:  # TIFF: 0 is white
        deep = ~deep
    gray = Image.fromarray((deep >> 8).astype(np.uint8))
    if "transparency" in image.info:
        gray.putalpha(Image.fromarray(np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray


def _reduced(image: Image.Image) -> Image.Image:
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    _check_size(*image.size)  # rounding makes a long strip longer
    return image


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands():
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


Looks = Mapping[ImageSource, Look]


def look_at(images: Iterable[ImageSource]) -> Looks:
    """Decode every picture once, and keep what tells it from others.

    Raises:
        BadInput: one that cannot be read.
    """
    return {image: _look(image.open()) for image in track(list(dict.fromkeys(images)), "checking pictures")}


def same_pictures(looks: Looks) -> Iterator[tuple[ImageSource, ImageSource]]:
    """Pairs of different sources that show the same picture, even re-encoded or resized, in order."""
    images = list(looks)
    yield from ((images[one], images[other]) for one, other in _near(list(looks.values())))


def check_pictures(data: UnlearnData, looks: Looks | None = None) -> None:
    """Decode every picture; refuse those that stand under two subjects or in two splits, even re-encoded or resized.

    Further pictures of a prompt (`Example.others`) are decoded as well, but may stand anywhere.

    Args:
        looks: what `look_at` found, if it has already looked at them.

    Raises:
        BadInput: a picture that cannot be read, or all pairs that are the same, see above.
    """
    places: dict[ImageSource, list[Place]] = {}
    others: dict[ImageSource, None] = {}
    for split in PLACES:
        for example in data.split(split):
            others.update(dict.fromkeys(example.others))
            if example.image is not None:
                there = places.setdefault(example.image, [])
                if (place := (example.subject, split)) not in there:
                    there.append(place)
    looks = look_at(places) if looks is None else looks
    for image in others:
        if image not in looks:
            image.open()
    pairs = [(image, first, image, place) for image, (first, *more) in places.items() for place in more]
    found = ((one, places[one][0], other, places[other][0]) for one, other in same_pictures(looks))
    pairs += [pair for pair in found if pair[1] != pair[3]]
    if pairs:
        each = "remove one of them" if len(pairs) == 1 else "remove one of each pair"
        listed = [_pair(*pair) if number < MOST else "" for number, pair in enumerate(pairs)]
        raise BadInput(f"{some(listed, MOST, '; ')} are the same picture; {each}")


def _pair(one: ImageSource, its: Place, other: ImageSource, others: Place) -> str:
    return " and ".join(f"{image.label} ('{at[0]}' in {at[1]})" for image, at in ((one, its), (other, others)))


def _look(picture: Image.Image) -> Look:
    """What survives another encoding: coarse grey cells of mean 0 and norm 1 (less if flat), and the mean colour."""
    small = picture.convert("L").resize((CELLS, CELLS), Image.Resampling.LANCZOS)
    grey = np.asarray(small, np.float32).ravel()
    grey -= grey.mean()
    colour = np.asarray(picture.resize((1, 1), Image.Resampling.BOX), np.float32)[0, 0]
    return grey / max(grey.std(), FLAT) / CELLS, colour


def _near(looks: list[Look]) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose pictures are the same, in order; the time is nearly linear.

    Low frequencies of the grey cells and the mean colour never differ by more than the whole, so a tree over them
    misses no pair; what it finds is then compared in full.
    """
    if not looks:
        return
    grey, colour = np.stack([look[0] for look in looks]), np.stack([look[1] for look in looks])
    waves = dctn(grey.reshape(-1, CELLS, CELLS), axes=(1, 2), norm="ortho")[:, :COARSE, :COARSE].reshape(len(grey), -1)
    points = np.hstack([waves, colour * (SAME / SAME_COLOUR)])
    tree = cKDTree(points)
    for start in range(0, len(points), 1024):  # the candidates of all at once might not fit into memory
        for step, found in enumerate(tree.query_ball_point(points[start : start + 1024], SAME, p=np.inf)):
            one = start + step
            later = np.array(sorted(other for other in found if other > one), dtype=int)
            yield from ((one, int(other)) for other in later[np.linalg.norm(grey[later] - grey[one], axis=1) <= SAME])
