"""Variation moves pixels and colours as it says, by its own draws, and leaves the rest alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stacker.config.training import AugmentConfig
from stacker.training.augment import mix, vary

NOTHING: dict[str, Any] = {"flips": False, "quarter_turns": False, "colour_jitter": 0.0}


def recipe(**settings: Any) -> AugmentConfig:
    """Return a recipe that does this and nothing else."""
    return AugmentConfig.model_validate({**NOTHING, **settings})


def rng(seed: int = 0) -> torch.Generator:
    """Return a generator of known draws."""
    return torch.Generator().manual_seed(seed)


def picture(height: int = 4, width: int = 4) -> np.ndarray:
    """Return pixels that differ everywhere."""
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def variants(settings: AugmentConfig, pixels: np.ndarray) -> set[bytes]:
    """Return all distinct results of many draws."""
    many = torch.from_numpy(np.repeat(pixels[None], 400, axis=0))
    varied = (vary(many, settings, rng()) * 255).round().byte().numpy()
    return {image.tobytes() for image in varied}


def test_nothing_wanted_nothing_done() -> None:
    """Without settings colours are the pixels between 0 and 1."""
    pixels = torch.from_numpy(picture()[None])
    assert torch.equal(vary(pixels, recipe(), rng()), pixels.float() / 255)


def test_a_square_has_eight_symmetries() -> None:
    """Flips alone give four, turns alone four, both together all eight."""
    square = picture()
    turns = {np.rot90(square, k).tobytes() for k in range(4)}
    mirrored = {np.rot90(square[:, ::-1], k).tobytes() for k in range(4)}
    flips = {s.tobytes() for s in (square, square[::-1], square[:, ::-1], square[::-1, ::-1])}
    assert variants(recipe(quarter_turns=True), square) == turns
    assert variants(recipe(flips=True), square) == flips
    assert variants(recipe(flips=True, quarter_turns=True), square) == turns | mirrored


def test_a_rectangle_keeps_its_shape() -> None:
    """It is turned by half a turn, never by a quarter."""
    wide = picture(4, 6)
    half = {wide.tobytes(), wide[::-1, ::-1].tobytes()}
    flips = half | {wide[::-1].tobytes(), wide[:, ::-1].tobytes()}
    assert variants(recipe(quarter_turns=True), wide) == half
    assert variants(recipe(flips=True, quarter_turns=True), wide) == flips


def test_rotation_turns_about_the_centre_without_squeezing() -> None:
    """A disc in the centre of a rectangle stays a disc; what is off centre moves along its circle."""
    yy, xx = np.mgrid[:48, :96]
    disc = ((yy - 23.5) ** 2 + (xx - 47.5) ** 2 < 15**2).astype(np.uint8) * 200
    pixels = torch.from_numpy(np.repeat(disc[None, :, :, None], 3, axis=3).repeat(8, axis=0))
    turned = vary(pixels, recipe(rotation=90), rng())
    centre = slice(24, 72)  # further out the mirrored borders come in
    assert (turned - pixels.float() / 255)[:, :, centre].abs().mean() < 0.01
    dot = torch.zeros(64, 48, 96, 3, dtype=torch.uint8)
    dot[:, 22:26, 60:64] = 255
    spots = vary(dot, recipe(rotation=30), rng())[..., 0]
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(96.0), indexing="ij")
    mass = spots.sum(dim=(1, 2))
    y, x = ((spots * axis).sum(dim=(1, 2)) / mass for axis in (rows, columns))
    radius = ((y - 23.5) ** 2 + (x - 47.5) ** 2).sqrt()
    assert (radius - 14).abs().max() < 0.5
    angle = torch.rad2deg(torch.atan2(y - 23.5, x - 47.5))
    assert angle.abs().max() < 31
    assert angle.max() > 20
    assert angle.min() < -20


def test_stain_jitter_moves_along_the_stains() -> None:
    """White stays nearly white, tissue changes, and what changes differs from image to image."""
    tissue = torch.tensor([120, 60, 150], dtype=torch.uint8).expand(6, 8, 8, 3)
    varied = vary(tissue, recipe(stain_jitter=0.2), rng())
    assert (varied.flatten(1).std(dim=0) > 0.005).all()
    assert (varied - tissue.float() / 255).abs().max() < 0.35
    white = torch.full((6, 8, 8, 3), 255, dtype=torch.uint8)
    assert vary(white, recipe(stain_jitter=0.2), rng()).min() > 0.9
    tiny = vary(tissue, recipe(stain_jitter=1e-6), rng())
    torch.testing.assert_close(tiny, tissue.float() / 255, atol=1e-4, rtol=0)


def test_colour_jitter_differs_by_image_and_channel() -> None:
    """Each image gets gains and shifts of its own."""
    grey = torch.full((6, 4, 4, 3), 128, dtype=torch.uint8)
    varied = vary(grey, recipe(colour_jitter=0.5), rng())
    assert len(varied[:, 0, 0].flatten().unique()) == 18
    assert (varied - 0.5).abs().max() < 0.2


def test_mixup_blends_images_and_targets_alike() -> None:
    """The share of an image's own class is the share of its own pixels."""
    colours = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 6, 6, 3)
    targets = torch.eye(4)
    mixed, shares = mix(colours, targets, recipe(mixup=0.5), rng(3))
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed[:, 0, 0, 0], shares @ torch.arange(4.0))
    assert ((shares > 0) & (shares < 1)).any()


def test_cutmix_pastes_a_piece_and_counts_its_area() -> None:
    """Pixels are one image's or another's, and the targets are their areas."""
    colours = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 10, 20, 3)
    mixed, shares = mix(colours, torch.eye(4), recipe(cutmix=1.0), rng(1))
    for row in range(4):
        areas = [float((mixed[row, ..., 0] == k).float().mean()) for k in range(4)]
        np.testing.assert_allclose(areas, shares[row], atol=1e-6)
    assert ((shares > 0) & (shares < 1)).any()


def test_where_both_are_wanted_a_coin_chooses() -> None:
    """Over many batches some are blended and some are pasted."""
    colours = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 10, 10, 3)
    generator, pasted = rng(), []
    for _ in range(40):
        mixed, _ = mix(colours, torch.eye(4), recipe(mixup=1.0, cutmix=1.0), generator)
        pasted.append(bool((mixed == mixed.round()).all()))
    assert 5 < sum(pasted) < 35


@pytest.mark.parametrize(
    "settings", [{"flips": True, "rotation": 9.0, "stain_jitter": 0.1}, {"mixup": 1}]
)
def test_draws_come_from_the_generator_alone(settings: dict[str, Any]) -> None:
    """The same generator varies the same way, whatever torch's own state is."""
    pixels = torch.randint(256, (4, 8, 8, 3), dtype=torch.uint8)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = rng()
        varied = vary(pixels, recipe(**settings), generator)
        results.append(mix(varied, torch.eye(4), recipe(**settings), generator))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
