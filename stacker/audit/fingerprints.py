"""What a picture looks like in a few numbers: colour, contrast, and a fingerprint that finds its copies.

A fingerprint must survive what offline augmentation does: mirroring, turning by any angle, another
brightness, a new JPEG. A small grey picture is sampled on circles around its middle and Fourier
transformed along them: turning the picture then only shifts phases, mirroring conjugates them.

    G_rk   the spectrum over radius r and harmonic k, unit length; k = 0 is gone, low k are damped,
           because all edges of tissue against glass look alike in them
    |G|    the same for all turned and mirrored copies: similar images are found by it
    sum_r G_rk conj(G'_rk)   transformed back is the correlation at every angle: it decides

Measured on 422 BreakHis and 1,729 IDC images: different images correlate below 0.81 (one pair of empty
IDC patches 0.93); copies turned by 20 or 47 degrees, with noise, or as JPEG of quality 50 at 0.91 to 1.
Zoomed, cropped and shifted copies are not found.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryFile

import numpy as np

from stacker.data.images import FLAT, GRID, small_grey
from stacker.data.store import Pixels
from stacker.progress import bar

SIMILAR = 0.88
RADII, ANGLES, HARMONICS = 16, 144, 24
BLOCK = 2048
ROUNDING = 2e-3  # of the float16 in which magnitudes are kept


@dataclass(frozen=True)
class Measures:
    """One row per image: its colour, and what is compared.

    colour (N, 6): mean and spread of red, green, blue; saturation (N,); contrast (N,) in grey levels;
    spectra (N, RADII, HARMONICS) complex64: G; magnitudes (N, RADII * HARMONICS) float16: |G|
    """

    colour: np.ndarray
    saturation: np.ndarray
    contrast: np.ndarray
    spectra: np.ndarray
    magnitudes: np.ndarray


@dataclass(frozen=True)
class Copy:
    """Two rows of a manifest that show one picture, and what was done to one of them."""

    first: int
    second: int
    change: str
    similarity: float


def measure(pixels: Pixels) -> Measures:
    """Measure every image of a store in one pass; the spectra go to a temporary file."""
    colours, saturations, contrasts, magnitudes = [], [], [], []
    shape = (len(pixels), RADII, HARMONICS)
    file = TemporaryFile()  # noqa: SIM115  # it goes with the array that is mapped to it
    os.posix_fallocate(file.fileno(), 0, 8 * math.prod(shape))  # a full disk is an error here, not later
    spectra_NRK = np.memmap(file, np.complex64, shape=shape)
    with bar("audit images", len(pixels)) as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
        for block in _blocks(len(pixels), max(1, min(256, 100_000_000 // pixels[:1].nbytes))):
            images_BHWC = pixels[block]
            colour, saturation = _colours(images_BHWC)
            small_BSS = np.stack(list(pool.map(small_grey, images_BHWC)))
            spectra_BRK = spectra_NRK[block] = _spectra(small_BSS)
            colours.append(colour)
            saturations.append(saturation)
            contrasts.append(small_BSS.std(axis=(1, 2)))
            magnitudes.append(np.abs(spectra_BRK).reshape(len(block), -1).astype(np.float16))
            advance(len(block))
    colour, saturation, contrast, magnitude = (
        np.concatenate(pieces) for pieces in (colours, saturations, contrasts, magnitudes)
    )
    return Measures(colour, saturation, contrast, spectra_NRK, magnitude)


def _blocks(count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def _colours(images_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and spread of the channels (B, 6) and the mean saturation (B,) of every nth pixel."""
    step = math.ceil(images_BHWC.shape[1] / GRID)
    values_BHW3 = images_BHWC[:, ::step, ::step].astype(np.float32) / 255
    values_3BP = np.ascontiguousarray(np.moveaxis(values_BHW3, 3, 0)).reshape(3, len(images_BHWC), -1)
    highest, lowest = np.maximum.reduce(values_3BP), np.minimum.reduce(values_3BP)
    saturation_B = ((highest - lowest) / np.maximum(highest, 1e-6)).mean(axis=1)
    colour_B6 = np.concatenate([values_3BP.mean(axis=2), values_3BP.std(axis=2)]).T
    return colour_B6, saturation_B


def _spectra(small_BSS: np.ndarray) -> np.ndarray:
    """Return G (B, RADII, HARMONICS) complex64 of small pictures; nothing but zeros for flat ones."""
    values = small_BSS.reshape(len(small_BSS), -1).astype(np.float32) @ _transform()
    spectra_BRK = values.view(np.complex64).reshape(-1, RADII, HARMONICS)
    length_B11 = np.sqrt((np.abs(spectra_BRK) ** 2).sum(axis=(1, 2), keepdims=True))
    spectra: np.ndarray = spectra_BRK / np.maximum(length_B11, 1e-3)
    return spectra


@cache
def _transform() -> np.ndarray:
    """Return the matrix from grey values to (real, imaginary) of every radius and harmonic.

    All of it is linear: sampling on circles, the Fourier transform along them, damping of the low
    harmonics, and the weight of a circle, whose outer ones stand for more of the picture.
    """
    centre = (GRID - 1) / 2
    radius_R1 = ((np.arange(RADII) + 0.5) / RADII * (centre - 0.5))[:, None]
    angle_A = 2 * np.pi * np.arange(ANGLES) / ANGLES
    y, x = centre + radius_R1 * np.sin(angle_A), centre + radius_R1 * np.cos(angle_A)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    down, right = y - top, x - left
    samples_RASS = np.zeros((RADII, ANGLES, GRID, GRID))
    r, a = np.indices((RADII, ANGLES))
    samples_RASS[r, a, top, left] = (1 - down) * (1 - right)
    samples_RASS[r, a, top + 1, left] = down * (1 - right)
    samples_RASS[r, a, top, left + 1] = (1 - down) * right
    samples_RASS[r, a, top + 1, left + 1] = down * right
    spectra_RKSS = np.fft.rfft(samples_RASS, axis=1)[:, :HARMONICS]
    damping_K11 = np.minimum(1, np.arange(HARMONICS) / 8)[:, None, None]
    area_R111 = np.sqrt(radius_R1 / radius_R1.max())[:, None, None]
    weighted = (spectra_RKSS * damping_K11 * area_R111).reshape(RADII * HARMONICS, -1).T
    return np.ascontiguousarray(weighted, np.complex64).view(np.float32)


def find_pairs(measures: Measures, rows: np.ndarray) -> list[Copy]:
    """Return pairs among some rows that show one content, flat pictures left out.

    Of a group of copies there are as many pairs as tie it together: a thousand copies of one picture
    would make half a million.
    """
    rows = rows[measures.contrast[rows] > FLAT]
    magnitudes_ND = measures.magnitudes[rows]
    pairs: list[Copy] = []
    group_N = np.arange(len(measures.contrast))
    with bar("compare images", len(rows)) as advance:
        for block in _blocks(len(rows), BLOCK):
            for first, second in _candidates(magnitudes_ND, block):
                new = group_N[rows[first]] != group_N[rows[second]]
                for pair in _confirm(measures.spectra, rows[first[new]], rows[second[new]]):
                    one, other = group_N[pair.first], group_N[pair.second]
                    if one != other:
                        group_N[group_N == other] = one
                        pairs.append(pair)
            advance(len(block))
    return sorted(pairs, key=lambda pair: -pair.similarity)


def _candidates(magnitudes_ND: np.ndarray, block: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs with a row in the block whose magnitudes are as near as those of copies must be.

    The distance of magnitudes is never larger than that of the pictures in the best position:
    |a - b|^2 = 2 (1 - correlation). So no copy is missed.
    """
    block_BD = magnitudes_ND[block].astype(np.float32)
    for start in range(int(block[0]), len(magnitudes_ND), 8 * BLOCK):
        others_MD = magnitudes_ND[start : start + 8 * BLOCK].astype(np.float32)
        squared = (block_BD**2).sum(1)[:, None] + (others_MD**2).sum(1) - 2 * block_BD @ others_MD.T
        first, second = np.nonzero(squared <= 2 * (1 - SIMILAR) + ROUNDING)
        first, second = block[first], second + start
        later = second > first
        first, second = first[later], second[later]
        for i in range(0, len(first), BLOCK):
            yield first[i : i + BLOCK], second[i : i + BLOCK]


def _confirm(spectra_NRK: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[Copy]:
    """Return those of the candidate pairs that correlate at some angle, mirrored or not."""
    one_PRK, other_PRK = spectra_NRK[first], spectra_NRK[second]
    copies = []
    at_angles = [_correlations(one_PRK, other_PRK), _correlations(one_PRK, other_PRK.conj())]
    best_2P = np.stack([correlations_PA.max(axis=1) for correlations_PA in at_angles])
    for p in np.flatnonzero(best_2P.max(axis=0) >= SIMILAR):
        mirrored = bool(best_2P[1, p] > best_2P[0, p])
        # conjugation mirrors upside down; half a turn makes it left to right, as people say it
        shift = int(at_angles[mirrored][p].argmax() + mirrored * ANGLES // 2) % ANGLES
        degrees = min(shift, ANGLES - shift) * 360 / ANGLES
        turned = f"rotated by {degrees:.0f} degrees" if degrees else ""
        change = " and ".join(filter(None, ("mirrored" if mirrored else "", turned))) or "same position"
        similarity = round(float(best_2P[:, p].max()), 4)
        copies.append(Copy(int(first[p]), int(second[p]), change, similarity))
    return copies


def _correlations(one_PRK: np.ndarray, other_PRK: np.ndarray) -> np.ndarray:
    """Return the correlation of each pair at every angle, (P, ANGLES)."""
    cross_PK = (one_PRK * other_PRK.conj()).sum(axis=1)
    correlations: np.ndarray = np.fft.ifft(cross_PK, n=ANGLES, axis=1).real * ANGLES
    return correlations
