"""The grad-cam package as its users run it: what stage two is measured against.

A user takes a model as timm builds it, float32, parameters that want gradients, and names the module
whose output is looked at. Here that is the one whose output is the backbone's last grid, found by
running an image through the model; a family that computes its last grid outside of any module has none,
and is left out with a word. For batches the size and the memory layout are chosen by trying.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stacker.backbones.backbone import Backbone
from stacker.bench.timing import seconds
from stacker.errors import install_extra

SIZES = (1, 4, 8, 16, 32, 64)
CPU_LARGEST = 16  # more gains nothing there, and takes gigabytes
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Peer:
    """The package on one base model: its layer, what suits its batches best, and how it maps images."""

    layer: str
    batch_size: int
    layout: str
    batched: Callable[[int], None]
    loop: Callable[[int], None]


def find_peers(
    models: Mapping[str, tuple[Backbone, Tensor]], device: torch.device
) -> tuple[dict[str, Peer], list[str]]:
    """Return the package on each base model and its normalised images, and why any is left out."""
    if find_spec("pytorch_grad_cam") is None:
        return {}, [f"the grad-cam package is left out, not installed; {install_extra('bench')}"]
    peers, notes = {}, []
    for name, (backbone, images_BCHW) in models.items():
        layer = peer_layer(backbone, images_BCHW[:1])
        if layer is None:
            notes.append(f"{name}: no module's output is its last grid: the package was left out")
        else:
            peers[name] = _tune(backbone, layer, images_BCHW, device)
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


def _tune(backbone: Backbone, layer: str, images_BCHW: Tensor, device: torch.device) -> Peer:
    """Choose the layout by trying some images, and in it the size of a batch.

    The loop stays with the layout in which timm builds a model.
    """
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

    def cost(layout: str, size: int) -> float:
        """Time a batch twice: the first time is a warm-up, unless it was the faster one."""
        return min(seconds(lambda: looks[layout](size, size), device) / size for _ in (1, 2))

    middle = sizes[len(sizes) // 2]
    layout = min(LAYOUTS, key=lambda name: cost(name, middle))
    best = min(sizes, key=lambda size: cost(layout, size))
    return Peer(layer, best, layout, partial(looks[layout], best), partial(looks["contiguous"], 1))


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
