"""The exact difference of two versions of a tensor, in few bytes.

A coded difference is a number P for every weight, the float difference after − before (rounded), and what is missing to
make it exact in both directions:

    after  = round(before + P) + forwards           round: to the stored dtype; P = 0 changes nothing
    before = round(after − P) + backwards           + of the last terms: on the stored bits, as integers

P stands there in full (in the working precision, so that `forwards` is nearly all zeros), or, where the difference is a
matrix of low rank plus rounding, as two factors. Factors are integers, small enough for every sum of their product to
be exact in float64: the product is the same on every machine, whatever the order of its sums, and so is the result.

Integers are split into byte planes (all lowest bytes, then all second ones, …), each compressed by itself: exponents
repeat, the last bits of mantissas do not.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsee.checkpoint.folder import DTYPES

Array = NDArray[Any]
EXACT = 53  # bits of an integer that float64 holds exactly
MOST_RANK = 64
NOISE = 4.0  # a tail of singular values this many times above rounding is signal
SKETCH = 128  # buckets


@dataclass(frozen=True)
class TensorDifference:
    """What is stored of one changed tensor.

    Attributes:
        dtype: as safetensors calls it.
        rank: of the factors; 0: P in full.
        exponent: of the factors' product: P = left @ right * 2**exponent.
        streams: packed integers: P or both factors, then forwards and backwards.
        norms: Frobenius norms of before, after and P.
        sketch: of before, see `sketch`.
    """

    dtype: str
    shape: tuple[int, ...]
    rank: int
    exponent: int
    streams: tuple[bytes, ...]
    norms: tuple[float, float, float]
    sketch: Array

    def to_bytes(self) -> bytes:
        head = struct.pack("<iiddd", self.rank, self.exponent, *self.norms)
        largest = float(np.finfo("<f4").max)
        return _framed([head, np.clip(self.sketch, -largest, largest).astype("<f4").tobytes(), *self.streams])

    @staticmethod
    def from_bytes(data: bytes, dtype: str, shape: tuple[int, ...]) -> TensorDifference:
        head, buckets, *streams = _unframed(data)
        rank, exponent, *norms = struct.unpack("<iiddd", head)
        read = np.frombuffer(buckets, "<f4").astype(np.float64)
        return TensorDifference(dtype, shape, rank, exponent, tuple(streams), (norms[0], norms[1], norms[2]), read)

    def float_difference(self) -> Tensor:
        """P, of the tensor's shape: after − before in float32 (float64 for float64 tensors)."""
        working, count = _working(self.dtype), int(np.prod(self.shape, dtype=np.int64))
        if not self.rank:
            bits = unpack(self.streams[0], count, working.itemsize)
            return _floats((bits >> 1) | (bits << (8 * bits.itemsize - 1)), working).reshape(self.shape)
        rows = self.shape[0]
        left = _signed(unpack(self.streams[0], rows * self.rank, 4)).reshape(rows, self.rank)
        right = _signed(unpack(self.streams[1], self.rank * (count // rows), 4)).reshape(self.rank, count // rows)
        return _product(left, right, self.exponent, working).reshape(self.shape)

    def after(self, before: bytes | bytearray) -> bytes:
        """The stored bytes of the changed tensor."""
        return self._turned(before, self.float_difference(), self.streams[-2])

    def before(self, after: bytes | bytearray) -> bytes:
        """The stored bytes of the tensor as it was."""
        return self._turned(after, -self.float_difference(), self.streams[-1])

    def _turned(self, data: bytes | bytearray, difference: Tensor, missing: bytes) -> bytes:
        predicted = _moved(as_floats(data, self.dtype), difference.flatten())
        if missing:
            predicted = predicted + _signed_bits(unpack(missing, predicted.size, predicted.itemsize))
        return predicted.tobytes()


def difference(
    before: bytes | bytearray, after: bytes | bytearray, dtype: str, shape: tuple[int, ...]
) -> TensorDifference:
    """Code the difference of two versions of a float tensor, the shorter of both ways.

    Args:
        before: the bytes as stored, of the safetensors dtype `dtype`, one of `DTYPES`.

    Raises:
        RuntimeError: it does not decode to what was given; a defect, never seen.
    """
    old, new = as_floats(before, dtype), as_floats(after, dtype)
    exact = new.double() - old.double()
    exact = torch.where(exact.isfinite(), exact, 0.0)
    norms = tuple(float(x.double().nan_to_num(0.0, 0.0, 0.0).norm()) for x in (old, new, exact))
    seen = sketch(old)

    def coded(rank: int, exponent: int, streams: list[bytes], P: Tensor) -> TensorDifference:
        forwards = _missing(_moved(old, P), _bits(new))
        backwards = _missing(_moved(new, -P), _bits(old))
        return TensorDifference(
            dtype, shape, rank, exponent, (*streams, forwards, backwards), (norms[0], norms[1], norms[2]), seen
        )

    working = _working(dtype)
    P = exact.to(working)
    P = torch.where(P.isfinite(), P, 0.0)
    bits = _bits(P)
    found = coded(0, 0, [pack((bits << 1) | (bits >> (8 * bits.itemsize - 1)))], P)
    if (factors := _factors(exact, old, new, shape)) is not None:
        left, right, exponent = factors
        P = _product(left, right, exponent, working).flatten()
        if P.isfinite().all():
            low = coded(left.shape[1], exponent, [pack(_zigzag(left)), pack(_zigzag(right))], P)
            found = min(found, low, key=lambda d: sum(map(len, d.streams)))
    if found.after(before) != after or found.before(after) != before:
        raise RuntimeError("a coded difference does not decode to the tensors it was made of")
    return found


def _factors(exact: Tensor, old: Tensor, new: Tensor, shape: tuple[int, ...]) -> tuple[Array, Array, int] | None:
    """Integer factors of a difference that is of low rank up to the rounding of weights; None if it is not."""
    if len(shape) < 2 or not exact.any() or min(shape) == 0:
        return None
    D = exact.reshape(shape[0], -1)
    most = min(MOST_RANK, D.numel() // (2 * sum(D.shape)))
    if most < 1:
        return None
    # Rounding to a step u has the mean square u²/12; the step of a weight is its size times epsilon, within a factor 2.
    step = torch.maximum(old.double().abs(), new.double().abs()).nan_to_num(0.0, 0.0, 0.0) * torch.finfo(old.dtype).eps
    rounding = NOISE * float(step.square().sum()) / 12
    probe = torch.randn(
        D.shape[1], min(most + 8, *D.shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    span = torch.linalg.qr(D @ probe).Q
    span = torch.linalg.qr(D @ (D.T @ span)).Q  # one power iteration: Halko et al. 2011, algorithm 4.4
    inner = span.T @ D
    U, S, Vh = torch.linalg.svd(inner, full_matrices=False)
    tails = float(D.square().sum()) - S.square().cumsum(0)
    enough = (tails <= rounding).nonzero().flatten()
    if not len(enough) or int(enough[0]) >= most:
        return None
    rank = int(enough[0]) + 1
    root = S[:rank].sqrt()
    bits = (EXACT - (rank - 1).bit_length()) // 2  # rank products of two such integers add up below 2**53
    left, down = _integers((span @ U[:, :rank]) * root, bits)
    right, up = _integers(root[:, None] * Vh[:rank], bits)
    return left, right, -(down + up)


def _integers(values: Tensor, bits: int) -> tuple[Array, int]:
    """Values times 2**power, rounded to integers below 2**bits in size (as int32, so of 31 bits at most)."""
    power = min(bits, 30) - int(np.frexp(float(values.abs().max()))[1]) - 1
    return (values * 2.0**power).round().numpy().astype(np.int32), power


def _product(left: Array, right: Array, exponent: int, working: torch.dtype) -> Tensor:
    exact = torch.from_numpy(left.astype(np.float64)) @ torch.from_numpy(right.astype(np.float64))
    return (exact * 2.0**exponent).to(working)


# Floats and their bits ------------------------------------------------------------------------------------------------


def as_floats(data: bytes | bytearray, dtype: str) -> Tensor:
    """Stored bytes as a flat tensor; none of it is written to."""
    kind = DTYPES[dtype]
    integers = np.frombuffer(data, f"<i{kind.itemsize}").astype(f"i{kind.itemsize}")
    return torch.from_numpy(integers).view(kind)


def as_bytes(values: Tensor) -> bytes:
    return bytes(_bits(values.flatten().contiguous()).tobytes())


def _working(dtype: str) -> torch.dtype:
    return torch.float64 if dtype == "F64" else torch.float32


def _bits(values: Tensor) -> Array:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize]
    return values.view(kind).numpy().view(f"<u{values.dtype.itemsize}")


def _floats(bits: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(bits.view(f"i{bits.itemsize}")).view(dtype)


def _moved(values: Tensor, by: Tensor) -> Array:
    """The bits of values + by, rounded to the dtype of `values`; untouched where `by` is zero, be it −0 or a NaN."""
    return _bits(torch.where(by == 0, values, (values.to(by.dtype) + by).to(values.dtype)))


# Integers in few bytes ------------------------------------------------------------------------------------------------


def _missing(predicted: Array, wanted: Array) -> bytes:
    """What is to be added to predicted bits; nothing if they are right."""
    off = wanted - predicted
    return pack(_zigzag(off.view(f"i{off.itemsize}"))) if off.any() else b""


def _zigzag(values: Array) -> Array:
    """0, −1, 1, −2, … as 0, 1, 2, 3, …: small numbers have empty high bytes, whatever their sign."""
    return ((values << 1) ^ (values >> (8 * values.itemsize - 1))).view(f"u{values.itemsize}")


def _signed_bits(zigzag: Array) -> Array:
    return (zigzag >> 1) ^ (0 - (zigzag & 1))


def _signed(zigzag: Array) -> Array:
    return _signed_bits(zigzag).view(f"i{zigzag.itemsize}")


def pack(values: Array) -> bytes:
    """Unsigned integers as byte planes, each compressed or not, whichever is shorter."""
    planes = np.ascontiguousarray(values.reshape(-1).astype(f"<u{values.itemsize}")).view(np.uint8)
    return _framed([_shortest(plane.tobytes()) for plane in planes.reshape(-1, values.itemsize).T])


def unpack(data: bytes, count: int, size: int) -> Array:
    """`count` unsigned integers of `size` bytes.

    Raises:
        ValueError: the data is not of so many.
    """
    planes = [np.frombuffer(inflate(plane, count), np.uint8) for plane in _unframed(data)]
    if len(planes) != size or any(len(plane) != count for plane in planes):
        raise ValueError(f"expected {size} planes of {count} bytes")
    return np.ascontiguousarray(np.stack(planes, axis=1)).view(f"<u{size}").reshape(-1)


def _shortest(data: bytes) -> bytes:
    """A zlib stream: frequencies of bytes with runs, or without, which is better for noise.

    No other matches are sought: they take twenty times as long and save a thousandth.
    """
    found = []
    for strategy in (zlib.Z_RLE, zlib.Z_HUFFMAN_ONLY):
        packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        found.append(packer.compress(data) + packer.flush())
    return min(found, key=len)


def inflate(data: bytes, size: int) -> bytes:
    """Undo zlib; never more than `size` bytes.

    Raises:
        ValueError: not a zlib stream of so many bytes.
    """
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) != size:
        raise ValueError(f"expected {size} bytes")
    return content


def _framed(parts: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def _unframed(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return parts


# Distance without the other tensor ------------------------------------------------------------------------------------


def sketch(values: Tensor) -> Array:
    """Sums over `SKETCH` buckets of the entries with signs, both drawn by hashing an entry's place.

    Linear, and the squared length of a sketch has the tensor's own as its mean, with a relative standard deviation of
    at most sqrt(2 / SKETCH) (count sketch, Charikar et al. 2002). So the distance of two tensors can be had from one
    and the sketch of the other, within about 6 %. float64.
    """
    flat = values.flatten().double().nan_to_num(0.0, 0.0, 0.0).numpy()
    buckets = np.zeros(SKETCH)
    for start in range(0, len(flat), 1 << 20):
        part = flat[start : start + (1 << 20)]
        hashed = np.arange(start, start + len(part), dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finaliser
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashed ^= hashed >> np.uint64(31)
        signs = 1.0 - 2.0 * (hashed >> np.uint64(63)).astype(np.float64)
        buckets += np.bincount((hashed % np.uint64(SKETCH)).astype(np.int64), signs * part, SKETCH)
    return buckets
