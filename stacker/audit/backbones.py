"""The backbones of a config: whether each can be built, and where its maps come from."""

from __future__ import annotations

from pathlib import Path

from stacker.audit.report import Finding, Fit, finding
from stacker.config.maps import PERTURBING
from stacker.config.root import Config
from stacker.data.manifest import Manifest
from stacker.errors import BackboneError, LeakError, StackerError

COARSE = 4  # a map of fewer cells a side points at quadrants


def check_weights(config: Config, manifest: Manifest, findings: list[Finding]) -> None:
    """Find weights that cases of this run have trained; other faults of weights are found elsewhere."""
    from stacker.backbones.weights import require_unseen

    try:
        require_unseen({**config.backbones, **config.frozen}, manifest.cases)
    except LeakError as error:
        findings.append(finding("error", "weights trained on these cases", error.what, error.advice))
    except BackboneError:
        return


def fit_backbones(config: Config, classes: int, findings: list[Finding]) -> tuple[Fit, ...]:
    """Build every backbone with its weights, and see where its maps come from."""
    from stacker.backbones.devices import choose_device

    try:
        choose_device(config.device)
    except StackerError as error:
        findings.append(finding("error", "device", error.what, error.advice))
    fits = []
    for frozen, backbones in ((False, config.backbones), (True, config.frozen)):
        for name in backbones:
            try:
                fits.append(_fit(config, name, frozen, classes))
            except StackerError as error:
                findings.append(finding("error", "backbone", error.what, error.advice))
    for fit in fits:
        if not fit.frozen and min(fit.grid) < COARSE:
            grid = f"{fit.grid[0]}x{fit.grid[1]}"
            size = f"images.size={config.images.size}"
            text = f"{fit.backbone}: at {size} its maps have only {grid} cells, too few to localise"
            findings.append(finding("note", "coarse maps", text, "use larger images for finer maps"))
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
    cells = sum(maps_BChw.numel() for maps_BChw in answers.maps.values())
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
