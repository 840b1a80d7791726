"""The grad-cam package as its users run it: what stage two is measured against.

A user takes a model as timm builds it, float32, parameters that want gradients, and names the module
whose output is looked at. Here that is the one whose output is the backbone's last grid, found by
running an image through the model; a family that computes its last grid outside of any module has none,
and is left out with a word. For batches the size and the memory layout are chosen by trying.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from stacker.backbones.backbone import Backbone
from stacker.errors import ConfigError

SIZES = (1, 4, 8, 16, 32, 64)
CPU_LARGEST = 16  # more gains nothing there, and takes gigabytes
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Peer:
    """Two copies of a base model in the package's hands: one as timm builds it, one for batches.

    The images lie on the device in the layout of either copy.
    """

    layer: str
    batch_size: int
    layout: str
    plain: Any
    tuned: Any
    plain_BCHW: Tensor  # noqa: N815  # shapes are part of names
    tuned_BCHW: Tensor  # noqa: N815

    def batched(self, images: int) -> None:
        """Give a map of each of so many images, in batches."""
        _look(self.tuned, self.tuned_BCHW[:images], self.batch_size)

    def loop(self, images: int) -> None:
        """Give a map of each of so many images, one by one."""
        _look(self.plain, self.plain_BCHW[:images], 1)


def find_peers(
    models: Mapping[str, tuple[Backbone, Tensor]], device: torch.device
) -> tuple[dict[str, Peer], list[str]]:
    """Return the package's view of each base model with its normalised images, and who is left out."""
    try:
        require_package()
    except ConfigError as error:
        return {}, [f"{error}; it was left out"]
    found, notes = {}, []
    for name, (backbone, images_BCHW) in models.items():
        layer = peer_layer(backbone, images_BCHW[:1])
        if layer is None:
            notes.append(f"{name}: no module's output is its last grid: the package was left out")
        else:
            found[name] = _tune(backbone, layer, images_BCHW, device)
    return found, notes


def require_package() -> None:
    """Raise ConfigError where the grad-cam package is not installed."""
    if find_spec("pytorch_grad_cam") is None:
        raise ConfigError("the grad-cam package is not installed: pip install 'stacker[bench]'")


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
    """Choose the layout by trying some images, and in it the size of a batch."""
    cams = {name: package_cam(backbone, layer, images_BCHW, name) for name in LAYOUTS}
    images = {name: images_BCHW.contiguous(memory_format=form) for name, form in LAYOUTS.items()}
    largest = CPU_LARGEST if device.type == "cpu" else len(images_BCHW)
    sizes = [size for size in SIZES if size <= min(largest, len(images_BCHW))]

    def cost(layout: str, size: int) -> float:
        """Time a batch twice: the first time is a warm-up, unless it was the faster one."""
        tried = images[layout][:size]
        return min(milliseconds(lambda: _look(cams[layout], tried, size), size, device) for _ in (1, 2))

    middle = sizes[len(sizes) // 2]
    layout = min(LAYOUTS, key=lambda name: cost(name, middle))
    best = min(sizes, key=lambda size: cost(layout, size))
    plain = next(iter(LAYOUTS))
    return Peer(layer, best, layout, cams[plain], cams[layout], images[plain], images[layout])


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


def _look(cam: Any, images_BCHW: Tensor, size: int) -> None:
    """Give a map of every image, of the class that its model sees in it."""
    for batch_BCHW in images_BCHW.split(size):
        cam(batch_BCHW, None)
        cam.outputs = None  # it would keep the graph, beside that of the next batch


def milliseconds(run: Callable[[], object], images: int, device: torch.device) -> float:
    """Return what a run takes per image, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started) / images
