"""The grad-cam package as its users run it: what stage two is measured against.

A user takes a model as timm builds it, float32, parameters that want gradients, and names the module
whose output is looked at. Here that is the one whose output is the backbone's last grid, found by
running an image through the model; a family that computes its last grid outside of any module has none,
and is left out, which is said. For batches the size and the memory layout are chosen by trying, the
smallest sizes first and no longer than the time allows.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stacker.backbones.backbone import Backbone
from stacker.bench.timing import second_time
from stacker.errors import install_extra
from stacker.progress import track

log = logging.getLogger(__name__)
TRY = "warm-up, grad-cam"
SIZES = (1, 4, 8, 16, 32, 64)
CPU_LARGEST = 16  # more gains nothing there, and takes gigabytes
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Peer:
    """The package on one base model: its layer, what suits its batches best, and how it maps images.

    `seconds` and `loop_seconds` are what an image took in both ways when they were tried.
    """

    layer: str
    batch_size: int
    layout: str
    batched: Callable[[int], None]
    loop: Callable[[int], None]
    seconds: float
    loop_seconds: float


def find_peers(
    models: Mapping[str, tuple[Backbone, Tensor]], device: torch.device, limit: float
) -> tuple[dict[str, Peer], list[str]]:
    """Return the package on each base model and its normalised images, and what was left out.

    Finding the best batches takes about `limit` seconds at most.
    """
    if find_spec("pytorch_grad_cam") is None:
        advice = install_extra("bench")
        return {}, [f"grad-cam was left out: the package is not installed ({advice})"]
    peers, notes, until = {}, list[str](), time.perf_counter() + limit
    for number, (name, (backbone, images_BCHW)) in enumerate(track(models.items(), TRY, len(models))):
        left = until - time.perf_counter()
        layer = peer_layer(backbone, images_BCHW[:1])
        if layer is None:
            notes.append(f"grad-cam was left out for {name}: no module's output is its last grid")
            continue
        if left < 0:
            notes.append(f"grad-cam was skipped for {name}: not enough time (--minutes)")
            continue
        log.info("warm-up: grad-cam on %s", name)
        share = left / (len(models) - number)
        peers[name], untried = _tune(backbone, layer, images_BCHW, device, share)
        if untried:
            sizes = ", ".join(map(str, untried))
            notes.append(f"grad-cam on {name}: batches of {sizes} were not tried: not enough time")
    return peers, notes


def peer_layer(backbone: Backbone, image_1CHW: Tensor) -> str | None:
    """Return the name of the outermost module whose output is the last grid; None when there is none."""
    if backbone.target_layer != "forward_features":
        return backbone.target_layer
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, output: outputs.update({name: output})

    handles = [m.register_forward_hook(keep(name)) for name, m in backbone.model.named_modules() if name]
    try:
        with torch.no_grad():
            last = backbone.model.forward_features(image_1CHW)
    finally:
        for handle in handles:
            handle.remove()
    same = [name for name, output in outputs.items() if output is last]  # in the order of ending
    return same[-1] if same else None


def _tune(
    backbone: Backbone, layer: str, images_BCHW: Tensor, device: torch.device, limit: float
) -> tuple[Peer, list[int]]:
    """Choose the layout by trying some images, and in it the size of a batch.

    Return the package and the sizes that were not tried, as the time was up or the memory too small. The
    loop stays with the layout in which timm builds a model.
    """
    until = time.perf_counter() + limit
    looks = {
        name: partial(
            _look,
            package_cam(backbone, layer, images_BCHW, name),
            images_BCHW.contiguous(memory_format=form),
        )
        for name, form in LAYOUTS.items()
    }
    largest = min(len(images_BCHW), CPU_LARGEST if device.type == "cpu" else len(images_BCHW))
    sizes = [size for size in SIZES if size <= largest]
    loop = _seconds_per_image(looks["contiguous"], 1, device)
    tried = {("contiguous", 1): loop}

    def attempt(layout: str, size: int) -> None:
        """Time a batch unless there is no time for one."""
        if time.perf_counter() + 2 * size * loop <= until:
            tried[layout, size] = _seconds_per_image(looks[layout], size, device)

    for layout in LAYOUTS:
        attempt(layout, sizes[len(sizes) // 2])
    best_layout = min(tried, key=tried.__getitem__)[0]
    for size in sizes:
        if (best_layout, size) not in tried:
            attempt(best_layout, size)
    layout, best = min(tried, key=tried.__getitem__)
    untried = [size for size in sizes if not math.isfinite(tried.get((best_layout, size), math.inf))]
    ways = partial(looks[layout], best), partial(looks["contiguous"], 1)
    return Peer(layer, best, layout, *ways, tried[layout, best], loop), untried


def _seconds_per_image(look: Callable[[int, int], None], size: int, device: torch.device) -> float:
    """Time a batch; infinite where the memory is too small."""
    try:
        return second_time(lambda: look(size, size), device) / size
    except torch.OutOfMemoryError:
        return math.inf


def package_cam(backbone: Backbone, layer: str, images_BCHW: Tensor, layout: str) -> Any:
    """Return the package's GradCAM of a copy of the model; tokens are put back into a grid for it."""
    from pytorch_grad_cam import GradCAM

    model: nn.Module = copy.deepcopy(backbone.model)
    model.requires_grad_(True).to(memory_format=LAYOUTS[layout])
    reshape = None
    if backbone.cut.layout != "NCHW":
        with torch.no_grad():
            grid_1Chw = backbone.trunk(images_BCHW[:1]).grid_BChw
        reshape = lambda values: backbone.spatial(values, grid_1Chw)  # noqa: E731
    return GradCAM(model, [model.get_submodule(layer)], reshape)


def _look(cam: Any, images_BCHW: Tensor, size: int, images: int) -> None:
    """Give a map of each of so many images, in batches, of the class that the model sees in it."""
    for batch_BCHW in images_BCHW[:images].split(size):
        cam(batch_BCHW, None)
        cam.outputs = None  # it would keep the graph, beside that of the next batch
