"""Everything that can go wrong, before GPU time: the backbones, the disk, the images and the split.

Faults do not stop the examination: each becomes a finding, and what can still be looked at is looked
at. Unreadable images are left out for the rest of it, as `data.on_error: skip` would. Images that are
equal to the byte under two cases are left out only where they would be; else the audit has them, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stacker.audit.findings import Finding, finding
from stacker.config.maps import PERTURBING
from stacker.config.root import Config
from stacker.data.manifest import Manifest
from stacker.errors import BackboneError, LeakError, StackerError

COARSE = 4  # a map of fewer cells a side points at quadrants


@dataclass(frozen=True)
class Fit:
    """What one backbone will be: where its maps come from, their grid at the run's image size."""

    backbone: str
    weights: str
    layer: str
    grid: tuple[int, int]
    embedding: int
    parameters: int
    cells: int  # of all maps of one image
    frozen: bool


def _check_weights(config: Config, manifest: Manifest, found: list[Finding]) -> None:
    """Find weights that cases of this run have trained; other faults of weights are found elsewhere."""
    from stacker.backbones.weights import require_unseen

    try:
        require_unseen({**config.backbones, **config.frozen}, manifest.cases)
    except LeakError as error:
        found.append(finding("error", "trained weights", str(error)))
    except BackboneError:
        return


def _fit_backbones(config: Config, classes: int, found: list[Finding]) -> tuple[Fit, ...]:
    """Build every backbone with its weights, and see where its maps come from."""
    from stacker.backbones.devices import choose_device

    try:
        choose_device(config.device)
    except StackerError as error:
        found.append(finding("error", "device", str(error)))
    fits = []
    for frozen, backbones in ((False, config.backbones), (True, config.frozen)):
        for name in backbones:
            try:
                fits.append(_fit(config, name, frozen, classes))
            except StackerError as error:
                found.append(finding("error", "backbone", str(error)))
    for fit in fits:
        if not fit.frozen and min(fit.grid) < COARSE:
            height, width = fit.grid
            shown = f"maps of {height}x{width} cells at images.size={config.images.size}"
            text = f"{fit.backbone}: {shown} hardly localise"
            found.append(finding("note", "coarse maps", text, "larger images give finer maps"))
    return tuple(fits)


def _fit(config: Config, name: str, frozen: bool, classes: int) -> Fit:
    """Build a backbone and look at a blank image with it; raise BackboneError for what cannot be."""
    import torch

    from stacker.backbones.backbone import create
    from stacker.backbones.weights import drop_settings
    from stacker.maps.cam import look
    from stacker.training.optimizer import require_optimizer, require_stages

    settings, size = (config.frozen if frozen else config.backbones)[name], config.images.shape
    if frozen:
        backbone = create(name, classes, settings, size).freeze()
    else:
        recipe = config.recipe(name)
        require_optimizer(name, recipe)
        backbone = create(name, classes, settings, size, drop_settings(recipe)).freeze()
        require_stages(name, backbone.model, recipe)
    blank = torch.zeros(1, 3, *size)
    with torch.no_grad():
        _, _, height, width = backbone.trunk(blank).grid_BChw.shape
    maps = {} if frozen else config.cam.maps
    quick = {key: wanted for key, wanted in maps.items() if wanted[0] not in PERTURBING}
    answers = look(backbone, blank, quick, torch.float32)
    cells = sum(found.numel() for found in answers.maps.values())
    cells += (len(maps) - len(quick)) * classes * height * width
    known = settings.weights in ("hub", "random")
    return Fit(
        backbone=name,
        weights=settings.weights if known else Path(settings.weights).name,
        layer=backbone.target_layer,
        grid=(height, width),
        embedding=answers.embedding_BD.shape[1],
        parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        cells=cells,
        frozen=frozen,
    )
