"""Loop oracles: the definitions, written the direct way, one number at a time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10 with Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def taps(position: int, size: int, output_size: int, interpolation: str = "bilinear") -> dict[int, float]:
    """Weights of the inputs for an output position: Pillow's antialiased filters, or a box (area)."""
    scale = size / output_size
    if interpolation == "area" and scale > 1:  # how much of each pixel lies in the output's
        begin, end = Fraction(position * size, output_size), Fraction((position + 1) * size, output_size)
        overlap = {k: min(k + 1, end) - max(k, begin) for k in range(size)}
        return {k: float(part / (end - begin)) for k, part in overlap.items() if part > 0}
    reach, function = (2, cubic) if interpolation == "bicubic" else (1, triangle)
    support = reach * max(scale, 1.0)
    center = (position + 0.5) * scale
    weights = {}
    for k in range(max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)):
        weights[k] = function((k + 0.5 - center) * reach / support)
    total = math.fsum(weights.values())
    return {k: weight / total for k, weight in weights.items()}


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def cubic(x: float) -> float:
    """Keys' cubic convolution with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_matrix(size: int, output_size: int, interpolation: str = "bilinear") -> np.ndarray:
    """float64 (output_size, size): the taps of each output position."""
    matrix = np.zeros((output_size, size))
    for position in range(output_size):
        for k, weight in taps(position, size, output_size, interpolation).items():
            matrix[position, k] = weight
    return matrix


def resized_crop(
    image: np.ndarray, crop: tuple[int, int, int, int], output_size: tuple[int, int], interpolation: str = "bilinear"
) -> np.ndarray:
    """Crop, then resize: float64 (height, width, 3); not rounded, but bicubic after each pass, as Pillow does it."""
    top, left, height, width = crop
    cropped = image[top : top + height, left : left + width].astype(np.float64)
    rows = resize_matrix(height, output_size[0], interpolation)
    columns = resize_matrix(width, output_size[1], interpolation)
    if interpolation == "bicubic":
        return fixed_point(rows, fixed_point(columns, cropped.transpose(1, 0, 2)).transpose(1, 0, 2))
    return np.einsum("yh,hwc,xw->yxc", rows, cropped, columns, optimize=True)


def fixed_point(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """matrix @ values along the first axis in Pillow's integers of 1/2**22, rounded and clipped to levels."""
    coefficients = np.trunc(matrix * 2**22 + np.copysign(0.5, matrix))
    return np.clip(np.floor((np.tensordot(coefficients, values, 1) + 2**21) / 2**22), 0, 255)


def weights(plan) -> list[float]:
    """What each crop counts for under mixup."""
    shares = [1.0]
    for lam in plan.lams:
        shares = [share * lam for share in shares] + [1 - lam]
    return shares


def cropmix(image: np.ndarray, plan, output_size: tuple[int, int], interpolation: str = "bilinear") -> np.ndarray:
    """One mixing step after the other, as the authors do: float64 (height, width, 3), not rounded."""
    crops = [resized_crop(image, crop, output_size, interpolation) for crop in plan.crops]
    composite = crops[0]
    for step, crop in enumerate(crops[1:]):
        order = list(plan.permutations[step]) if plan.permutations is not None else [0, 1, 2]
        if plan.operation == "mixup":
            lam = plan.lams[step]
            if lam > 0.5:
                crop = crop[:, :, order]
            else:
                composite = composite[:, :, order]
            composite = lam * composite + (1 - lam) * crop
            continue
        row0, col0, row1, col1 = plan.boxes[step]
        below, pasted = (composite, crop) if plan.paste_next[step] else (crop, composite)
        composite = below.copy()
        for row in range(max(row0, 0), min(row1, output_size[0])):
            for column in range(max(col0, 0), min(col1, output_size[1])):
                composite[row, column] = pasted[row, column, order]
    return composite[:, ::-1] if plan.flip else composite


def zigzag() -> list[int]:
    """Where in a block, row by row, JPEG's coefficients are, diagonal after diagonal."""
    places = [(row, column) for row in range(8) for column in range(8)]
    return [8 * r + c for r, c in sorted(places, key=lambda p: (sum(p), p[0] if sum(p) % 2 else p[1]))]


LARGEST = (78, 16, 6, 5, 3, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1)  # docs/dct.md
CODES = [(run, v * sign) for run, most in enumerate(LARGEST) for v in range(1, most + 1) for sign in (1, -1)]
"""Run and coefficient of the codes 0 to 253"""


def fast_entry(window: str, table: dict[str, int], coefficients: bool) -> int:
    """An entry of `kernels.huffman.prepare_fast_table` for these bits; table: Huffman codes and their symbols."""

    def first(bits: str) -> tuple[int, int]:
        """Length and symbol of the Huffman code at the start; the length is 0 if the bits do not complete it."""
        return next(((k, table[bits[:k]]) for k in range(1, len(bits) + 1) if bits[:k] in table), (0, 0))

    bits = end = steps = 0
    found: list[int] = []
    while coefficients and not end and len(found) < 2:
        length, symbol = first(window[bits:])
        run, size = divmod(symbol, 16)
        if length and symbol == 0:
            bits, end, steps = bits + length, 1, steps + 1
            continue
        number = window[bits + length :][:size]
        if length == 0 or size == 0 or len(number) < size:
            break
        value = int(number, 2) if number[0] == "1" else int(number, 2) - 2**size + 1
        if (run, value) not in CODES:
            break
        found.append(CODES.index((run, value)))
        bits, steps = bits + length + size, steps + run + 1
    if found or end:
        code, second = [*found, 0, 0][:2]
        return bits | len(found) << 4 | end << 6 | code << 8 | second << 16 | steps << 24
    length, symbol = first(window)
    return -(symbol << 8 | length) if length else 0


def unstuffed(data: bytes) -> list[bytes]:
    """The segments of entropy-coded data between restart markers, up to any other marker (T.81, B.1.1.5)."""
    segments, k = [bytearray()], 0
    while k + 1 < len(data):
        if data[k] != 0xFF:
            segments[-1].append(data[k])
            k += 1
        elif data[k + 1] == 0xFF:  # a fill byte
            k += 1
        else:
            if data[k + 1] == 0:
                segments[-1].append(0xFF)
            elif 0xD0 <= data[k + 1] <= 0xD7:
                segments.append(bytearray())
            else:
                break
            k += 2
    return [bytes(segment) for segment in segments]


def dct_content(quantisation: list[np.ndarray], planes: list[np.ndarray]) -> tuple[bytes, list[int], list[int]]:
    """docs/dct.md: what zstd compresses; number of codes and of escapes of each component.

    Args:
        quantisation: 64 numbers in natural order, for each component.
        planes: integers (rows, columns, 64), coefficients of its blocks.
    """
    order = zigzag()
    numbers, differences, row_escapes, counts, codes, escapes = [], [], [], [], [], []
    for plane in planes:
        own_codes, own_escapes = [], []
        for y, row in enumerate(plane):
            before = len(own_escapes)
            for x, block in enumerate(row):
                predicted = row[x - 1][0] if x else plane[y - 1][0][0] if y else 0
                difference = (int(block[0]) - int(predicted) + 2**15) % 2**16 - 2**15
                differences.append(2 * difference if difference >= 0 else -2 * difference - 1)
                count = run = 0
                for place in order[1:]:
                    value = int(block[place])
                    if value == 0:
                        run += 1
                        continue
                    if (run, value) in CODES:
                        own_codes.append(CODES.index((run, value)))
                    else:
                        own_codes.append(254 + (value < 0))
                        own_escapes.append(run << 10 | abs(value))
                    count, run = count + 1, 0
                numbers.append(count)
            row_escapes.append(len(own_escapes) - before)
        counts.append((len(own_codes), len(own_escapes)))
        codes += own_codes
        escapes += own_escapes

    def halves(values: list[int]) -> bytes:
        return bytes(value % 256 for value in values) + bytes(value // 256 for value in values)

    tables = halves([int(value) for table in quantisation for value in table])
    content = tables + bytes(numbers) + halves(differences) + halves(row_escapes) + bytes(codes) + halves(escapes)
    return content, [codes for codes, _ in counts], [escapes for _, escapes in counts]


def dct_sample(
    height: int, width: int, factors: list[tuple[int, int]], quantisation: list[np.ndarray], planes: list[np.ndarray]
) -> bytes:
    """A sample of mode dct; factors: (horizontal, vertical) of each component."""
    from backports import zstd

    content, codes, escapes = dct_content(quantisation, planes)
    return dct_header(height, width, factors, codes, escapes) + zstd.compress(
        content, options={zstd.CompressionParameter.checksum_flag: 1}
    )


def dct_header(height: int, width: int, factors: list[tuple[int, int]], codes: list[int], escapes: list[int]) -> bytes:
    """The first 36 bytes of a sample."""
    none = [0] * (3 - len(factors))
    sampling = bytes([16 * h + v for h, v in factors] + none)
    lengths = np.array([*codes, *none, *escapes, *none], "<u4").tobytes()
    return b"DCT\1" + np.array([height, width], "<u2").tobytes() + bytes([len(factors)]) + sampling + lengths


def cosines() -> list[list[float]]:
    """The orthonormal DCT of 8 values: coefficient k is the sum over x of cosines[k][x] * value[x]."""
    return [
        [math.sqrt((1 if k == 0 else 2) / 8) * math.cos((2 * x + 1) * k * math.pi / 16) for x in range(8)]
        for k in range(8)
    ]


def inverse_dct(coefficients: np.ndarray) -> np.ndarray:
    """The samples, not rounded, of a block's coefficients, both (8, 8) (ITU-T T.81, A.3.3)."""
    basis, samples = cosines(), np.full((8, 8), 128.0)
    for y in range(8):
        for x in range(8):
            for v in range(8):
                for u in range(8):
                    samples[y, x] += basis[v][y] * basis[u][x] * coefficients[v, u]
    return samples


def colour_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What libjpeg adds to luma: for red of red (256,), for green of blue and red (256, 256), for blue of blue."""

    def fix(x: float) -> int:
        return int(x * 65536 + 0.5)

    of_red = [(fix(1.40200) * (red - 128) + 32768) >> 16 for red in range(256)]
    of_blue = [(fix(1.77200) * (blue - 128) + 32768) >> 16 for blue in range(256)]
    of_green = [
        [(-fix(0.34414) * (blue - 128) + 32768 - fix(0.71414) * (red - 128)) >> 16 for red in range(256)]
        for blue in range(256)
    ]
    return np.array(of_red), np.array(of_green), np.array(of_blue)
