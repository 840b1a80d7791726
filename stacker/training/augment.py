"""Variation of training images, whole batches at once and on the device.

Every draw comes from a generator on the CPU, so that a GPU is never waited for and the same seed varies
the same way everywhere. Flips and quarter turns move uint8 pixels; the rest works on colours in 0..1.

    B images, H W their size, K classes; targets are shares of the classes
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from stacker.backbones.devices import Subset
from stacker.config.training import AugmentConfig, Balance

# Optical densities of haematoxylin, eosin and their complement: Ruifrok and Johnston 2001.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


def vary(pixels_BHWC: Tensor, recipe: AugmentConfig, rng: torch.Generator) -> Tensor:
    """Return varied colours_BHWC in 0..1 (jitter may leave it a little), each image by its own draw."""
    colours_BHWC = _mirror(pixels_BHWC, recipe, rng).float() / 255
    if recipe.rotation > 0:
        colours_BHWC = _rotate(colours_BHWC, recipe.rotation, rng)
    if recipe.stain_jitter > 0:
        colours_BHWC = _jitter_stains(colours_BHWC, recipe.stain_jitter, rng)
    if recipe.colour_jitter > 0:
        colours_BHWC = _jitter_colours(colours_BHWC, recipe.colour_jitter, rng)
    return colours_BHWC


def _uniform(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
    """Return draws between -1 and 1."""
    draws = torch.rand(shape, generator=rng) * 2 - 1
    return draws.to(device, non_blocking=True)


def _mirror(pixels_BHWC: Tensor, recipe: AugmentConfig, rng: torch.Generator) -> Tensor:
    """Put each image into one of its symmetries: mirrored along either axis, turned by quarters.

    Exchanging the axes (which only squares can) and mirroring along either make up all eight; an even
    number of these reflections is a turn.
    """
    if not (recipe.flips or recipe.quarter_turns):
        return pixels_BHWC
    count, height, width, _ = pixels_BHWC.shape
    across, down, swap = torch.randint(2, (3, count, 1, 1, 1), generator=rng).bool()
    square = height == width and recipe.quarter_turns
    if not recipe.flips:
        across = down ^ swap if square else down
    device = pixels_BHWC.device
    across, down, swap = (coin.to(device, non_blocking=True) for coin in (across, down, swap))
    if square:
        pixels_BHWC = torch.where(swap, pixels_BHWC.transpose(1, 2), pixels_BHWC).contiguous()
    pixels_BHWC = torch.where(across, pixels_BHWC.flip(2), pixels_BHWC)
    return torch.where(down, pixels_BHWC.flip(1), pixels_BHWC)


def _rotate(colours_BHWC: Tensor, degrees: float, rng: torch.Generator) -> Tensor:
    """Turn by some degrees to either side; what comes in from outside is the mirrored border."""
    count, height, width, _ = colours_BHWC.shape
    angle_B = _uniform((count,), rng, colours_BHWC.device) * math.radians(degrees)
    cos, sin, nothing = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    aspect = height / width
    turn_B23 = torch.stack([cos, -sin * aspect, nothing, sin / aspect, cos, nothing], dim=1).unflatten(
        1, (2, 3)
    )
    images_BCHW = colours_BHWC.permute(0, 3, 1, 2)
    grid_BHW2 = affine_grid(turn_B23, list(images_BCHW.shape), align_corners=False)
    turned = grid_sample(images_BCHW, grid_BHW2, padding_mode="reflection", align_corners=False)
    upright: Tensor = turned.permute(0, 2, 3, 1).contiguous()
    return upright


@cache
def _stains(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the stains' densities, of length one, and the matrix that tells amounts from densities."""
    stains_33 = torch.tensor(STAINS, dtype=torch.float64)
    stains_33 = stains_33 / stains_33.norm(dim=1, keepdim=True)
    return stains_33.float().to(device), torch.linalg.inv(stains_33).float().to(device)


def _jitter_stains(colours_BHWC: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Vary how much of each stain there is: Tellez et al. 2018, in the stains' own optical density."""
    stains_33, inverse_33 = _stains(colours_BHWC.device)
    density = -torch.log(colours_BHWC.clamp_min(1 / 255))
    draw = _uniform((2, len(colours_BHWC), 1, 1, 3), rng, colours_BHWC.device) * strength
    amounts = density @ inverse_33
    amounts = amounts * (1 + draw[0]) + draw[1] * 0.1
    jittered: Tensor = torch.exp(-(amounts @ stains_33)).clamp(0, 1)
    return jittered


def _jitter_colours(colours_BHWC: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Vary contrast and brightness of each channel, in units of a typical standard deviation."""
    gain, shift = _uniform((2, len(colours_BHWC), 1, 1, 3), rng, colours_BHWC.device) * strength
    jittered: Tensor = (colours_BHWC - 0.5) * (1 + gain) + 0.5 + shift * 0.225
    return jittered


def mix(
    colours_BHWC: Tensor, targets_BK: Tensor, recipe: AugmentConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend the batch with itself in another order (mixup) or paste pieces of it (cutmix).

    Zhang et al. 2018 and Yun et al. 2019; where both are wanted, a coin chooses for the batch. Both
    mix the targets by the share of the image that stayed.
    """
    if recipe.mixup == recipe.cutmix == 0:
        return colours_BHWC, targets_BK
    coin = float(torch.rand((), generator=rng))
    cut = recipe.cutmix > 0 and (recipe.mixup == 0 or coin < 0.5)
    share = _beta(recipe.cutmix if cut else recipe.mixup, rng)
    order = torch.randperm(len(colours_BHWC), generator=rng)
    order = order.to(colours_BHWC.device, non_blocking=True)
    if cut:
        height, width = colours_BHWC.shape[1:3]
        top, bottom = _piece(height, share, rng)
        left, right = _piece(width, share, rng)
        mixed = colours_BHWC.clone()
        mixed[:, top:bottom, left:right] = colours_BHWC[order, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = share * colours_BHWC + (1 - share) * colours_BHWC[order]
    return mixed, share * targets_BK + (1 - share) * targets_BK[order]


def _beta(alpha: float, rng: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha) by two gamma draws, as torch's distribution takes no generator."""
    one, two = (float(torch._standard_gamma(torch.tensor(alpha), generator=rng)) for _ in range(2))  # noqa: SLF001
    return one / (one + two) if one + two > 0 else 0.5


def _piece(side: int, share: float, rng: torch.Generator) -> tuple[int, int]:
    """Return where a side is cut so that the piece takes sqrt(1 - share) of it, anywhere, clipped."""
    length = math.sqrt(1 - share) * side
    centre = float(torch.rand((), generator=rng)) * side
    return max(0, round(centre - length / 2)), min(side, round(centre + length / 2))


def draw_order(subset: Subset, balance: Balance, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of an epoch in random order, each class spread evenly, so every batch has its mix.

    What all images have in common then cancels in a batch's gradient from the first step on, which a
    network without normalisation layers (VGG) needs to leave its starting plateau. `sampling` takes as
    many rows as there are, but equally many of each class, some of a rare one again and again; `cases`
    also takes equally many of each case of a class: one of many images is not overfitted.
    """
    labels = subset.labels[subset.rows]
    present = np.unique(labels)
    drawn, places = [], []
    for label, share in zip(present, _cut_evenly(len(labels), len(present)), strict=True):
        members = np.flatnonzero(labels == label)
        if balance == "sampling":
            members = _draw(members, share, rng)
        elif balance == "cases":
            members = _draw_by_case(members, subset.cases[subset.rows], share, rng)
        drawn.append(rng.permutation(members))
        places.append((np.arange(len(members)) + rng.random(len(members))) / len(members))
    rows: np.ndarray = subset.rows[np.concatenate(drawn)[np.argsort(np.concatenate(places))]]
    return rows


def _draw_by_case(
    members: np.ndarray, cases: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return so many of the members, equally many of each case."""
    names = rng.permutation(np.unique(cases[members]))
    shares = _cut_evenly(count, len(names))
    by_case = (members[cases[members] == name] for name in names)
    return np.concatenate([_draw(rows, n, rng) for rows, n in zip(by_case, shares, strict=True)])


def _draw(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return so many of the members, none twice before all have been taken."""
    rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else members[:0]


def _cut_evenly(count: int, parts: int) -> list[int]:
    """Return whole shares of a number that differ by one at most."""
    return [count // parts + (i < count % parts) for i in range(parts)]
