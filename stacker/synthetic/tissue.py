"""Drawing tissue: outlines, nuclei, and a field of view that they are painted into.

Haematoxylin and eosin are laid down as two layers of optical density (Ruifrok and Johnston, 2001),
painted from the back to the front (stroma, fat, glands, foci, nuclei), and turned to RGB with the
Beer-Lambert law. Lengths are in units of one pixel of a 350-pixel-wide image at 100X.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Array = NDArray[Any]


class Outline(NamedTuple):
    """A wobbly ellipse, or many of them when the fields are arrays."""

    x: Any
    y: Any
    a: Any
    b: Any
    angle: Any = 0.0
    wobble: Any = 0.0
    phase: Any = 0.0
    petals: Any = 5

    def edge(self, theta: Array) -> Array:
        """Relative radius of the outline in direction theta."""
        waves = 0.5 * np.sin(2 * theta + self.phase) + 0.4 * np.sin(3 * theta + 2.3 * self.phase)
        return np.asarray(1 + self.wobble * (waves + 0.5 * np.sin(self.petals * theta - self.phase)))

    def depth(self, x: Array, y: Array) -> Array:
        """0 at the centre, 1 on the outline, above 1 outside."""
        cos, sin, dx, dy = np.cos(self.angle), np.sin(self.angle), x - self.x, y - self.y
        u, v = (dx * cos + dy * sin) / self.a, (dy * cos - dx * sin) / self.b
        return np.asarray(np.hypot(u, v) / self.edge(np.arctan2(v, u)))

    def at(self, theta: Array, depth: Array | float) -> tuple[Array, Array, Array]:
        """x, y and outward direction at a depth of the outline in direction theta."""
        radius = depth * self.edge(theta)
        u, v = self.a * radius * np.cos(theta), self.b * radius * np.sin(theta)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        outward = np.arctan2(np.sin(theta) / self.b, np.cos(theta) / self.a) + self.angle
        return self.x + u * cos - v * sin, self.y + u * sin + v * cos, outward


class Nuclei(NamedTuple):
    """How the nuclei of one kind of cell look; spread is the log-normal spread of their size."""

    radius: float
    spread: float
    aspect: float
    wobble: float
    dark: float
    coarse: float
    pitch: float

    def towards(self, other: Nuclei, grade: float) -> Nuclei:
        """The look at a grade between this (0) and the other (1)."""
        return Nuclei(*(s + grade * (o - s) for s, o in zip(self, other, strict=True)))


EPITHELIAL = Nuclei(2.0, 0.08, 1.25, 0.04, 1.40, 0.30, 4.6)
LYMPHOCYTE = Nuclei(1.7, 0.10, 1.05, 0.04, 1.60, 0.15, 4.3)
FIBROBLAST = Nuclei(2.8, 0.20, 4.20, 0.06, 0.75, 0.10, 0.0)
ATYPICAL = Nuclei(7.8, 0.25, 1.35, 0.15, 1.20, 0.50, 16.8)
CYTOPLASM = (0.16, 0.40)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> Array:
    """Smooth noise (height, width) of about unit variance whose bumps are cell pixels wide."""
    height, width = (max(2, round(n / cell) + 2) for n in shape)
    coarse = Image.fromarray(rng.standard_normal((height, width)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)) * np.float32(1.4)


class Scene:
    """One field of view: layers of haematoxylin, eosin and nuclei (height, width), and the mask."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], magnification: int) -> None:
        self.rng, self.px = rng, size[0] / 350 * magnification / 100
        self.shape = (size[1], size[0])
        self.width, self.height = size[0] / self.px, size[1] / self.px
        self.x = (np.arange(size[0], dtype=np.float32) / np.float32(self.px))[None, :]
        self.y = (np.arange(size[1], dtype=np.float32) / np.float32(self.px))[:, None]
        self.nuclei = np.zeros(self.shape, np.float32)
        self.mask = np.zeros(self.shape, np.float32)
        self.chromatin = _noise(rng, self.shape, max(1.0, 1.3 * self.px))
        self.placed: list[tuple[float, float, float]] = []
        self._weave()

    def _weave(self) -> None:
        """Lay the stroma: wavy collagen whose bundles follow a smoothly bending direction."""
        rng, tilt = self.rng, self.rng.uniform(0, np.pi)
        bend = 10 * _noise(rng, self.shape, 90 * self.px) + 2.5 * _noise(rng, self.shape, 22 * self.px)
        across = self.y * np.cos(tilt) - self.x * np.sin(tilt) + bend
        along = self.x * np.cos(tilt) + self.y * np.sin(tilt)
        table = (
            ndimage.gaussian_filter(rng.standard_normal((128, 128)).astype(np.float32), 0.8, mode="wrap")
            * 2.5
        )
        bundle, fibre = (
            ndimage.map_coordinates(
                table, [across / pitch, along / (9 * pitch)], order=1, mode="grid-wrap"
            )
            for pitch in (5.0, 1.4)
        )
        rise, run = np.gradient(across)
        self.grain = np.arctan2(rise, run) + np.pi / 2
        cleft = np.clip((-1.1 - bundle) * 1.5, 0, 1)
        self.e = (0.48 + 0.10 * bundle + 0.06 * fibre).clip(0.1, None) * (1 - 0.8 * cleft)
        self.h = np.full(self.shape, 0.08, np.float32) * (1 - 0.8 * cleft) + 0.015 * fibre

    def place(self, radius: float) -> tuple[float, float]:
        """A centre for a circle, away from what was placed before where there is room."""
        best, margin = (0.0, 0.0, -np.inf), 0.6 * radius
        for _ in range(25):
            x = self.rng.uniform(min(margin, self.width / 2), max(self.width - margin, self.width / 2))
            y = self.rng.uniform(
                min(margin, self.height / 2), max(self.height - margin, self.height / 2)
            )
            room = min(
                (np.hypot(x - u, y - v) - 1.1 * (r + radius) for u, v, r in self.placed),
                default=0.0,
            )
            if room > best[2]:
                best = (x, y, room)
            if room >= 0:
                break
        self.placed.append((best[0], best[1], radius))
        return best[0], best[1]

    def outline(
        self, radius: float, wobble: float = 0.12, aspect: float = 1.0, **fields: Any
    ) -> Outline:
        """A placed outline of about this radius with a random orientation."""
        x, y = self.place(radius)
        root, rng = np.sqrt(aspect), self.rng
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6.3)
        return Outline(x, y, radius * root, radius / root, angle, wobble, phase, **fields)

    def paint(self, area: Outline, *bands: tuple[float, float, float], nest: bool = False) -> None:
        """Cover an outline with flat tissue, one (depth, haematoxylin, eosin) after the other.

        What lies below depth 1 of a nest also goes into the mask.
        """
        area = Outline(*map(float, area))  # NumPy's float64 scalars would widen the float32 grids
        reach = (1 + area.wobble) * max(area.a, area.b) * max(depth for depth, _, _ in bands) + 2
        (top, left), (bottom, right) = (
            np.clip([(area.y + s) * self.px, (area.x + s) * self.px], 0, self.shape).astype(int)
            for s in (-reach, reach)
        )
        window = slice(top, bottom), slice(left, right)
        away = area.depth(self.x[:, left:right], self.y[top:bottom])
        sharp = min(area.a, area.b) * self.px / 1.5
        for depth, h, e in bands:
            self._cover(window, np.clip((depth - away) * sharp + 0.5, 0, 1), h, e)
        if nest:
            self._mark(window, np.clip((1 - away) * sharp + 0.5, 0, 1))

    def _cover(self, window: tuple[slice, slice], cover: Array, h: float, e: float) -> None:
        """Replace what is there by flat tissue, as far as cover (0 to 1) says."""
        for layer, value in ((self.h, h), (self.e, e), (self.nuclei, 0.0)):
            layer[window] += cover * (value - layer[window])

    def _mark(self, window: tuple[slice, slice], cover: Array) -> None:
        """Add to the mask."""
        self.mask[window] = np.maximum(self.mask[window], cover)

    def cells(self, x: Array, y: Array, look: Nuclei, *, nest: bool) -> None:
        """Draw single cells, body and nucleus, centred at x, y (N,)."""
        bodies, everywhere = np.zeros_like(self.nuclei), (slice(None), slice(None))
        self.stamp(x, y, Nuclei(0.6 * look.pitch, 0.05, 1.1, 0.05, 1.25, 0.0, 0.0), layer=bodies)
        self._cover(everywhere, bodies.clip(0, 1), *CYTOPLASM)
        if nest:
            self._mark(everywhere, bodies)
        self.stamp(x, y, look)

    def stamp(
        self,
        x: Array,
        y: Array,
        look: Nuclei,
        angle: Array | None = None,
        layer: Array | None = None,
    ) -> None:
        """Draw nuclei of one look centred at x, y (N,); the darker one wins where two overlap."""
        layer = self.nuclei if layer is None else layer
        rng, n = self.rng, len(x)
        radius = look.radius * np.exp(look.spread * rng.standard_normal(n))
        root = np.sqrt(np.clip(look.aspect * np.exp(0.12 * rng.standard_normal(n)), 1, None))
        turn = rng.uniform(0, np.pi, n) if angle is None else np.broadcast_to(angle, (n,))
        phase, dark = rng.uniform(0, 6.3, n), look.dark * np.exp(0.13 * rng.standard_normal(n))
        half = np.ceil((radius * root * (1 + look.wobble) * self.px + 1.5) / 3).astype(int) * 3
        for size in np.unique(half):
            pick = half == size
            fields = (x, y, radius * root, radius / root, turn, look.wobble + 0 * x, phase, dark)
            windows = [np.asarray(f, np.float32)[pick, None, None] for f in fields]
            self._stamp(layer, int(size), windows, look.coarse)

    def _stamp(self, layer: Array, half: int, fields: list[Array], coarse: float) -> None:
        """Draw nuclei (N, 1, 1) that fit into windows of 2 * half + 1 pixels."""
        outline, dark = Outline(*fields[:7]), fields[7]
        step = np.arange(-half, half + 1)
        cols = np.rint(outline.x * self.px).astype(int) + step[None, None, :]
        rows = np.rint(outline.y * self.px).astype(int) + step[None, :, None]
        inner = 1 - outline.depth(*((at / self.px).astype(np.float32) for at in (cols, rows)))
        cover = np.clip(inner * outline.b * self.px + 0.5, 0, 1)
        seen = (cover > 0) & (rows >= 0) & (rows < self.shape[0]) & (cols >= 0) & (cols < self.shape[1])
        flat = (rows * self.shape[1] + cols)[seen]
        membrane = np.exp(-((inner[seen] / 0.22) ** 2))
        body = 0.8 + 0.3 * membrane + coarse * 0.35 * self.chromatin.ravel()[flat]
        ink = (cover * dark)[seen] * np.clip(body, 0.35, 1.6)
        np.maximum.at(layer.reshape(-1), flat, ink.astype(np.float32))

    def fill(self, area: Outline, look: Nuclei, depth: float = 0.95, hollow: float = 0.0) -> None:
        """Crowd an outline with nuclei on a jittered hexagonal grid."""
        pitch, reach = look.pitch, 1.4 * max(area.a, area.b)
        rows, cols = np.mgrid[-reach : reach : 0.87 * pitch, -reach:reach:pitch]
        cols[::2] += pitch / 2
        x, y = (
            c.ravel() + 0.15 * pitch * self.rng.standard_normal(c.size)
            for c in (cols + area.x, rows + area.y)
        )
        away = area.depth(x, y)
        keep = (away < depth) & (away > hollow)
        self.stamp(x[keep], y[keep], look)

    def ring(self, area: Outline, look: Nuclei, depth: float) -> None:
        """Line an outline with one row of nuclei that stand upright on it."""
        girth = 2 * np.pi * np.sqrt((area.a**2 + area.b**2) / 2) * depth
        n = max(5, round(girth / look.pitch * 1.12))
        theta = (np.arange(n) + self.rng.uniform(-0.2, 0.2, n)) * 2 * np.pi / n
        self.stamp(*area.at(theta, depth)[:2], look, area.at(theta, depth)[2])

    def gland(self, area: Outline, layers: int = 1, look: Nuclei = EPITHELIAL) -> None:
        """A duct or acinus: collagen sheath, epithelium and a pale lumen lined by nuclei."""
        thin = min(area.a, area.b)
        lumen, secretion = (
            max(0.2, 1 - (3.2 + 4.2 * layers) / thin),
            self.rng.choice([0.03, 0.05, 0.25]),
        )
        self.paint(area, (1 + 3 / thin, 0.06, 0.60), (1.0, 0.22, 0.42), (lumen, 0.02, secretion))
        for layer in range(layers):
            self.ring(area, look, 1 - (3.4 + 4.2 * layer) / thin)

    def scatter(self, density: float, look: Nuclei, along_grain: bool = False) -> None:
        """Scatter nuclei (per 1000 square units) over the field, optionally along the collagen."""
        n = self.rng.poisson(density * self.width * self.height / 1000)
        x, y = self.rng.uniform(0, self.width, n), self.rng.uniform(0, self.height, n)
        angle = self.direction(x, y) + 0.15 * self.rng.standard_normal(n) if along_grain else None
        self.stamp(x, y, look, angle)

    def direction(self, x: Array, y: Array) -> Array:
        """Direction of the collagen at the pixels nearest to x, y."""
        rows, cols = (y * self.px).astype(int), (x * self.px).astype(int)
        rows, cols = rows.clip(0, self.shape[0] - 1), cols.clip(0, self.shape[1] - 1)
        return np.asarray(self.grain[rows, cols])

    def fat(self) -> None:
        """A few empty fat cells with thin walls."""
        x, y = self.place(24)
        for _ in range(self.rng.integers(2, 6)):
            du, dv = self.rng.normal(0, 20, 2)
            a, b, phase = self.rng.uniform((11, 11, 0), (17, 17, 6))
            cell = Outline(x + du, y + dv, a, b, wobble=0.08, phase=phase)
            self.paint(cell, (1.1, 0.06, 0.45), (1.0, 0.01, 0.02))

    def rgb(self, stains: Array, light: Array) -> Array:
        """The picture (height, width, 3) uint8 under stains (2, 3) and background light (3,)."""
        rng = self.rng
        grit = 1 + np.float32(0.08) * _noise(rng, self.shape, max(1.0, 1.6 * self.px))
        h = np.clip(np.where(self.nuclei > 0, np.maximum(self.h, self.nuclei), self.h), 0, None)
        e = np.clip(self.e * grit * (1 - 0.45 * np.clip(self.nuclei, 0, 1)), 0, None)
        density = h[..., None] * stains[0] + e[..., None] * stains[1]
        right, down = (float(slope) for slope in rng.uniform(-0.05, 0.05, 2))
        tilt = right * (self.x / self.width - 0.5) + down * (self.y / self.height - 0.5)
        picture = np.exp(-density) * light * (1 + tilt[..., None])
        blur = rng.uniform(0.3, 0.8) * self.shape[1] / 350
        picture = ndimage.gaussian_filter(picture, (blur, blur, 0), truncate=2.5)
        picture += 0.012 * rng.standard_normal(picture.shape, dtype=np.float32)
        return np.asarray((picture.clip(0, 1) * 255 + 0.5).astype(np.uint8))
