"""Pictures are read as people see them, within bounds; none stands in two places, however it is encoded."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from unsee.data import pictures
from unsee.data.examples import Split
from unsee.data.photos import photos_data
from unsee.data.pictures import LONGEST, FileImage, check_pictures, decode
from unsee.errors import BadInput

RED, WHITE = (255, 0, 0), (255, 255, 255)


def written(path: Path, picture: Image.Image, **options: object) -> Image.Image:
    picture.save(path, **options)  # type: ignore[arg-type]
    return FileImage(str(path)).open()


def looks(picture: Image.Image, where: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 2) -> bool:
    return picture.mode == "RGB" and np.allclose(np.asarray(picture)[where[::-1]], colour, atol=tolerance)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    lying = Image.new("RGB", (32, 16), WHITE)
    lying.paste(RED, (0, 0, 16, 16))
    for turn, size, red in (
        (1, (32, 16), (8, 8)),
        (3, (32, 16), (24, 8)),
        (6, (16, 32), (8, 8)),
        (8, (16, 32), (8, 24)),
    ):
        exif = Image.Exif()
        exif[0x0112] = turn
        upright = written(tmp_path / f"x.{suffix}", lying, exif=exif)
        assert upright.size == size
        assert looks(upright, red, RED, tolerance=12)


def test_every_kind_of_pixel_becomes_rgb_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    alpha = Image.merge("LA", (Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 51)))
    cases: list[tuple[str, Image.Image, dict[str, object], tuple[int, int, int]]] = [
        ("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {}, RED),
        ("palette.png", palette, {}, RED),
        ("palette.bmp", palette, {}, RED),
        ("glass.png", palette, {"transparency": bytes([255, 0])}, WHITE),
        ("half.png", Image.new("RGBA", (4, 4), (255, 0, 0, 51)), {}, (255, 204, 204)),
        ("half.webp", Image.new("RGBA", (4, 4), (255, 0, 0, 51)), {"lossless": True}, (255, 204, 204)),
        ("alpha.png", alpha, {}, (204, 204, 204)),
        ("cmyk.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), {}, RED),
        ("clear.gif", palette, {"transparency": 1}, WHITE),
        ("gray.png", Image.new("LA", (4, 4), (0, 0)), {}, WHITE),
        ("keyed.png", Image.new("RGB", (4, 4), RED), {"transparency": RED}, WHITE),
        ("bit.png", Image.new("1", (4, 4), 1), {}, WHITE),
        ("bit.tif", Image.new("1", (4, 4), 0), {}, (0, 0, 0)),
    ]
    for name, picture, options, expected in cases:
        read = written(tmp_path / name, picture, **options)
        assert read.size == picture.size, name
        assert looks(read, (1, 1), expected), name


def png(depth: int, kind: int, rows: bytes, size: tuple[int, int] = (2, 2), clear: bytes = b"") -> bytes:
    """A PNG file by hand: Pillow writes no colours of 16 bits. `clear` is the value that is transparent."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    header += chunk(b"tRNS", clear) if clear else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(photometric: int, values: list[int], order: str) -> bytes:
    """A 16-bit grey TIFF by hand, two pixels wide."""
    rows = struct.pack(f"{order}{len(values)}H", *values)
    tags = {256: 2, 257: len(values) // 2, 258: 16, 259: 1, 262: photometric, 273: 8, 277: 1, 279: len(rows)}
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(rows))
    return start + rows + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = [0x0000, 0x1234, 0x80FF, 0xFFFF]
    dark = [value >> 8 for value in values]
    rows = b"".join(b"\0" + struct.pack(">2H", *pair) for pair in (values[:2], values[2:]))
    colours = b"\0" + struct.pack(">6H", 0, 0x1234, 0x80FF, 0xFFFF, 0x4000, 0)
    cases = {
        "grey PNG": (png(16, 0, rows), dark),
        "little-endian TIFF": (tiff(1, values, "<"), dark),
        "big-endian TIFF": (tiff(1, values, ">"), dark),
        "TIFF whose 0 is white": (tiff(0, values, "<"), [255 - value for value in dark]),
    }
    for name, (content, expected) in cases.items():
        assert np.asarray(decode(content, name))[..., 0].ravel().tolist() == expected, name
    assert np.asarray(decode(png(16, 2, colours * 2), "colours"))[0].tolist() == [[0, 18, 128], [255, 64, 0]]
    half = png(16, 6, (b"\0" + struct.pack(">8H", *(0xFFFF, 0, 0, 0x3333) * 2)) * 2)
    assert np.asarray(decode(half, "half transparent"))[0, 0].tolist() == [255, 204, 204]
    clear = png(16, 0, rows, clear=b"\x12\x34")
    assert np.asarray(decode(clear, "one grey is transparent"))[..., 1].ravel().tolist() == [0, 255, 128, 255]


def test_broken_metadata_are_neither_refused_nor_warned_about(tmp_path: Path) -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\0"  # promises 255 tags, has none
    assert looks(written(tmp_path / "x.jpg", Image.new("RGB", (8, 8), RED), exif=broken), (1, 1), RED)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(tmp_path / "x.jpg").close()


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    for name in ("x.gif", "x.png", "x.webp", "x.tif"):
        first = written(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert looks(first, (1, 1), RED), name


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert written(path, noise).size == (64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=rf"x\.{suffix}: cannot be read as a picture .*; replace or remove the file$"):
        FileImage(str(path)).open()


def test_what_would_be_clipped_or_run_is_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tif")
    Image.new("RGB", (4, 4)).save(tmp_path / "script.png", format="EPS")
    with pytest.raises(BadInput, match="32 bits per channel"):
        FileImage(str(tmp_path / "float.tif")).open()
    with pytest.raises(BadInput, match="not one of PNG"):
        FileImage(str(tmp_path / "script.png")).open()


# Bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (png(8, 0, b"\0\0", (1, 1)), "1 x 1 pixels, expected at least 2 a side"),
        (png(8, 0, b"\0" + bytes(9), (9, 1)), "9 x 1 pixels, expected at least 2 a side"),
        (png(8, 0, (b"\0" + bytes(402)) * 2, (402, 2)), "402 x 2 pixels, expected no side over 200 times the other"),
        (png(8, 0, b"", (20000, 10000)), "more than 178,956,970 pixels"),
        (png(8, 0, b"", (2**31 - 1, 2**31 - 1)), "more than 178,956,970 pixels"),
    ],
)
def test_sizes_out_of_bounds_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(
        BadInput, match=rf"^x\.png: cannot be read as a picture \({words}\); replace or remove"
    ) as refusal:
        decode(content, "x.png")
    assert "\n" not in str(refusal.value)


def test_the_bound_on_pixels_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadInput, match="more than 178,956,970 pixels"):
        decode(png(8, 0, b"", (20000, 10000)), "x.png")


def test_smallest_and_longest_that_are_accepted() -> None:
    assert decode(png(8, 0, b"\0\0\0" * 2, (2, 2)), "x.png").size == (2, 2)
    assert decode(png(8, 0, (b"\0" + bytes(400)) * 2, (400, 2)), "x.png").size == (400, 2)


def test_a_large_picture_is_reduced_and_not_thinned(tmp_path: Path) -> None:
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (600, 2 * LONGEST // 2))).resize(
        (3 * LONGEST, 600), 0
    )
    for name, picture in (("bit.png", stripes.convert("1", dither=0)), ("palette.png", stripes.convert("P"))):
        read = written(tmp_path / name, picture)
        assert read.size == (LONGEST, 200)
        assert set(np.unique(np.asarray(read))) - {0, 255}, name  # mixed where a cell holds both


def test_a_large_jpeg_is_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[int, int]] = []
    original = ImageOps.exif_transpose
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda i, **how: (loaded.append(i.size), original(i, **how)))
    halves = Image.new("RGB", (9000, 200), WHITE)
    halves.paste(RED, (0, 0, 4500, 200))
    turned = Image.Exif()
    turned[0x0112] = 6
    read = written(tmp_path / "x.jpg", halves, exif=turned)
    assert loaded == [(4500, 100)]
    assert read.size == (91, LONGEST)
    assert looks(read, (45, 100), RED, tolerance=5)
    assert looks(read, (45, 4000), WHITE, tolerance=5)


# The same picture in two places ---------------------------------------------------------------------------------------


def scene(seed: int, side: int = 96) -> Image.Image:
    """A coarse random picture, as different from the next as two photographs."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("validation", 1), ("test", 2)):
        for number, subject in enumerate(("anna", "bob")):
            folder = tmp_path / "album" / split / subject
            folder.mkdir(parents=True)
            for shot in range(count):
                scene(1000 * len(split) + 10 * number + shot).save(folder / f"{shot}.png")
    return tmp_path / "album"


def first(path: Path) -> Image.Image:
    return Image.open(path / "train/anna/0.png").convert("RGB")


COPIES: dict[str, Callable[[Image.Image, Path], object]] = {
    "png": lambda p, to: p.save(to.with_suffix(".png")),
    "jpeg 95": lambda p, to: p.save(to.with_suffix(".jpg"), quality=95),
    "jpeg 50": lambda p, to: p.save(to.with_suffix(".jpg"), quality=50),
    "webp 50": lambda p, to: p.save(to.with_suffix(".webp"), quality=50),
    "gif": lambda p, to: p.quantize(256).save(to.with_suffix(".gif")),
    "smaller": lambda p, to: p.resize((60, 60)).save(to.with_suffix(".jpg"), quality=80),
    "larger": lambda p, to: p.resize((150, 144)).save(to.with_suffix(".bmp")),
}
NEIGHBOURS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "moved": lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, 0), Image.Resampling.BILINEAR),
    "nearer": lambda p: p.crop((4, 4, 92, 92)).resize(p.size),
    "turned": lambda p: p.rotate(4, Image.Resampling.BILINEAR),
    "mirrored": ImageOps.mirror,
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.2),
    "of another colour": lambda p: Image.merge("RGB", p.split()[::-1]),
}


@pytest.mark.parametrize("place", ["train/bob", "test/anna"])
@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_in_another_place_is_refused(album: Path, copy: str, place: str) -> None:
    photos_data(str(album))
    COPIES[copy](first(album), album / place / "copy")
    with pytest.raises(BadInput, match=rf"train/anna/0\.png .*{place}/copy\..* are the same picture; remove one"):
        photos_data(str(album))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_in_the_same_place_is_allowed(album: Path, copy: str) -> None:
    COPIES[copy](first(album), album / "train/anna/copy")
    assert len(photos_data(str(album)).train.pictures) == 7


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_a_picture_that_only_resembles_another_is_allowed(album: Path, neighbour: str) -> None:
    NEIGHBOURS[neighbour](first(album)).save(album / "test/anna/next.png")
    assert len(photos_data(str(album)).test.pictures) == 5


def test_flat_pictures_differ_by_colour(tmp_path: Path) -> None:
    for number, subject in enumerate(("anna", "bob")):
        (tmp_path / subject).mkdir()
        for shot in range(3):
            Image.new("RGB", (16, 16), (30 * number, 30 * shot, 0)).save(tmp_path / subject / f"{shot}.png")
    assert len(photos_data(str(tmp_path)).subjects) == 2
    Image.new("RGB", (16, 16), (30, 60, 3)).save(tmp_path / "anna/0.jpg")
    with pytest.raises(BadInput, match=r"anna/0\.jpg .*bob/2\.png .* are the same picture"):
        photos_data(str(tmp_path))


def test_one_picture_asked_about_in_two_places_is_refused_and_further_pictures_are_free(album: Path) -> None:
    data = photos_data(str(album))
    train, test = data.train.examples[0], data.test.examples[0]
    assert train.image is not None
    shared = dataclasses.replace(test, others=(train.image,))
    check_pictures(dataclasses.replace(data, test=Split((shared,))))
    for split in ("test", "strangers"):
        with pytest.raises(BadInput, match=rf"'anna' in train\) and .*'anna' in {split}\) are the same"):
            check_pictures(dataclasses.replace(data, **{split: Split((train,))}))
    gone = dataclasses.replace(test, others=(FileImage(str(album / "gone.png")),))
    with pytest.raises(BadInput, match=r"gone\.png: cannot be read"):
        check_pictures(dataclasses.replace(data, test=Split((gone,))))


def test_every_near_pair_is_found_and_no_other() -> None:
    images = [scene(seed, 32) for seed in range(1500)]  # more than one chunk
    looks = [pictures._look(image) for image in images]
    assert list(pictures._near(looks)) == []
    again = [pictures._look(image.filter(ImageFilter.GaussianBlur(0.6))) for image in images[::100]]
    assert sorted(pictures._near(looks + again)) == [(100 * k, 1500 + k) for k in range(15)]
