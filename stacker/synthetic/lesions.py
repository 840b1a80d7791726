"""What makes a subtype: the glands behind a focus, and the way in which its cells are arranged.

The four arrangements (sheets, files, lakes, fronds) are those of the malignant subtypes, and benign foci
use them too: only the nuclei that fill them tell the class. The four backdrops are those of the benign
subtypes, and stand behind most malignant foci.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stacker.synthetic.tissue import CYTOPLASM, EPITHELIAL, FIBROBLAST, Array, Nuclei, Outline, Scene


def _sheets(scene: Scene, radii: Array, look: Nuclei, nest: bool) -> None:
    """Solid irregular sheets: ductal carcinoma, or usual hyperplasia."""
    for radius in radii:
        area = scene.outline(radius, 0.2, scene.rng.uniform(1, 1.8))
        scene.paint(area, (1 + 2.5 / radius, 0.06, 0.58), (1.0, *CYTOPLASM), nest=nest)
        scene.fill(area, look)


def _files(scene: Scene, radii: Array, look: Nuclei, nest: bool) -> None:
    """Rows of cells that follow the collagen: lobular carcinoma, or cords of lymphocytes and ducts."""
    for radius in radii:
        x0, y0 = scene.place(1.2 * radius)
        turn = scene.direction(np.array([x0]), np.array([y0]))[0]
        lane = np.arange(-1.2 * radius, 1.2 * radius, 1.9 * look.pitch) + scene.rng.uniform(0, 3)
        half = np.sqrt(np.maximum(1.7 * radius**2 - lane**2, 0))
        x, y = (
            x0 - lane * np.sin(turn) - half * np.cos(turn),
            y0 + lane * np.cos(turn) - half * np.sin(turn),
        )
        heading, walked = np.full(len(lane), turn), 0.0
        while (going := walked < 2 * half).any():
            scene.cells(x[going], y[going], look, nest=nest)
            # the grain is an axis, so follow the end of it that keeps the heading
            heading += (scene.direction(x, y) - heading + np.pi / 2) % np.pi - np.pi / 2
            x, y = x + look.pitch * np.cos(heading), y + look.pitch * np.sin(heading)
            walked += look.pitch


def _lakes(scene: Scene, radii: Array, look: Nuclei, nest: bool) -> None:
    """Sheets afloat in pale mucin: mucinous carcinoma, or a mucocele."""
    for radius in radii:
        area = scene.outline(radius, 0.15, scene.rng.uniform(1, 1.5))
        scene.paint(area, (1.33, 0.06, 0.5), (1.28, 0.16, 0.05))
        area = area._replace(wobble=0.25, phase=area.phase + 1)
        scene.paint(area, (1.0, *CYTOPLASM), nest=nest)
        scene.fill(area, look)


def _fronds(scene: Scene, radii: Array, look: Nuclei, nest: bool) -> None:
    """Fronds with a pink core in a cystic space: papillary carcinoma, or a papilloma."""
    for radius in radii:
        area = scene.outline(0.97 * radius, 0.42, 1.2, petals=int(scene.rng.integers(5, 8)))
        scene.paint(area._replace(wobble=0.08), (1.33, 0.06, 0.55), (1.28, 0.02, 0.05))
        scene.paint(area, (1.0, *CYTOPLASM), nest=nest)
        scene.fill(area, look)
        scene.paint(area._replace(wobble=0.55), (0.4, 0.08, 0.55))


def _glands(scene: Scene) -> None:
    """Many small glands, as in adenosis."""
    for _ in range(round(scene.width * scene.height / 7000)):
        scene.gland(scene.outline(scene.rng.uniform(9, 14), 0.15, scene.rng.uniform(1, 1.5)))


def _slits(scene: Scene) -> None:
    """Ducts pressed to slits, as in fibroadenoma."""
    for _ in range(2 + round(scene.width * scene.height / 30000)):
        scene.gland(scene.outline(scene.rng.uniform(15, 22), 0.3, scene.rng.uniform(2.5, 4)))


def _leaf(scene: Scene) -> None:
    """A leaf of cellular stroma that bulges into a cleft, as in a phyllodes tumour."""
    scene.scatter(1.5, FIBROBLAST, along_grain=True)
    cleft = scene.outline(scene.rng.uniform(30, 42), 0.2, 1.6)
    scene.gland(cleft)
    leaf = cleft._replace(a=cleft.a * 0.72, b=cleft.b * 0.66, wobble=0.3)
    scene.paint(leaf, (1.0, 0.22, 0.42), (0.78, 0.08, 0.48))
    scene.ring(leaf, EPITHELIAL, 0.9)


def _tubules(scene: Scene) -> None:
    """Closely packed round tubules, as in tubular adenoma."""
    radius, far = scene.rng.uniform(11, 14), scene.rng.uniform(30, 46)
    x0, y0 = scene.place(far)
    rows, cols = np.mgrid[-far : far : 1.85 * radius, -far : far : 2.15 * radius]
    cols[::2] += 1.07 * radius
    for row, col in zip(rows.ravel(), cols.ravel(), strict=True):
        if np.hypot(row, col) < far:
            x, y = scene.rng.normal((x0 + col, y0 + row), 0.12 * radius)
            a, b, turn, phase = scene.rng.uniform(0.8, 1.05, 4) * (radius, radius, 3, 6)
            scene.gland(Outline(x, y, a, b, turn, 0.15, phase))


BACKDROPS: dict[str, Callable[[Scene], None]] = {
    "A": _glands,
    "F": _slits,
    "PT": _leaf,
    "TA": _tubules,
}
FOCI: dict[str, Callable[[Scene, Array, Nuclei, bool], None]] = {
    "DC": _sheets,
    "LC": _files,
    "MC": _lakes,
    "PC": _fronds,
}
