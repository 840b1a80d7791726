"""What the tests of maps share: backbones, images, and pytorch-grad-cam as the oracle."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from stacker.backbones.backbone import Backbone, create
from stacker.config.maps import name_maps
from stacker.config.training import WeightsConfig
from stacker.maps.cam import look

# Against the package: before its ReLU, relative to the largest absolute value; what it shows, absolute.
RAW = 1e-4
RAW_OF_KERNEL = 2e-3  # the package has a kernel of float32, whose values are almost equal
SHOWN = 2e-3

PACKAGE = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcamelementwise": "GradCAMElementWise",
    "eigengradcam": "EigenGradCAM",
    "segeigencam": "SegEigenCAM",
    "shapleycam": "ShapleyCAM",
    "eigencam": "EigenCAM",
    "fem": "FEM",
    "kpcacam": "KPCA_CAM",
    "scorecam": "ScoreCAM",
    "ablationcam": "AblationCAM",
}
EITHER_SIGN = ("eigencam", "eigengradcam")  # the package leaves the sign to LAPACK
THREE = ("densenet121", "resnet50", "vgg16")
SIZE = (64, 96)  # not square: rows and columns of a grid cannot be mistaken for each other
BIAS = (0.3, -0.2)


@cache
def base_of(name: str, size: tuple[int, int] | None = None) -> Backbone:
    """Return a randomly initialised backbone with two classes."""
    torch.manual_seed(0)
    usual = (96, 96) if name in THREE else SIZE
    base = create(name, 2, WeightsConfig(weights="random"), size or usual)
    with torch.no_grad():  # a fresh bias is zero, and nobody would miss it
        base.model.get_classifier().bias.copy_(torch.tensor(BIAS))
    return base.freeze()


def images_of(base: Backbone, count: int = 2) -> Tensor:
    """Return images of smooth random colour."""
    rng = torch.Generator().manual_seed(1)
    small = torch.rand(count, 3, 8, 8, generator=rng)
    large = torch.nn.functional.interpolate(small, size=base.size, mode="bilinear")
    return base.normalise((large * 255).byte().permute(0, 2, 3, 1).contiguous())


def maps_of(
    base: Backbone,
    images: Tensor,
    *methods: str,
    lower: int = 0,
    precision: torch.dtype = torch.float32,
) -> dict[tuple[str, int], Tensor]:
    """Return maps by method and level below the last grid."""
    wanted = name_maps(methods, lower)
    maps = look(base, images, wanted, precision).maps
    assert list(maps.keys() ^ wanted.keys()) == []
    return {wanted[name]: found for name, found in maps.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest absolute value."""
    return float((found - expected).abs().max() / expected.abs().max())


def package_maps(base: Backbone, layer: str, method: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the package's unscaled and its shown maps; the class of image i is i modulo 2."""
    grid = base.trunk(images)[0].shape[2:]

    def to_nchw(values: Tensor) -> Tensor:
        if values.ndim == 3:
            return values[:, base.cut.prefix_tokens :].mT.reshape(len(values), -1, *grid)
        return values.permute(0, 3, 1, 2)

    reshape = None if base.cut.layout == "NCHW" else to_nchw
    kind = getattr(pytorch_grad_cam, PACKAGE[method])
    raw: list[np.ndarray] = []
    with kind(base.model, [base.model.get_submodule(layer)], reshape_transform=reshape) as oracle:
        compute = oracle.get_cam_image

        def keep(*arguments: Any) -> np.ndarray:
            raw.append(np.asarray(compute(*arguments), dtype=np.float32))
            return raw[-1]

        oracle.get_cam_image = keep
        targets = [ClassifierOutputTarget(i % 2) for i in range(len(images))]
        shown = oracle(input_tensor=images.clone().requires_grad_(), targets=targets)
    return torch.from_numpy(raw[0]), torch.from_numpy(shown)


def assert_is_the_packages(
    maps_BKhw: Tensor, base: Backbone, layer: str, method: str, images: Tensor
) -> None:
    """Compare maps with the package's, unscaled and as it shows them; some may have the other sign."""
    raw, shown = package_maps(base, layer, method, images)
    ours = torch.stack([maps_Khw[i % len(maps_Khw)] for i, maps_Khw in enumerate(maps_BKhw)])
    if method in EITHER_SIGN:
        ours = ours * (ours * raw).sum(dim=(1, 2), keepdim=True).sign()
    for i in range(len(images)):
        assert raw[i].abs().max() > 0
        assert relative(ours[i], raw[i]) < (RAW_OF_KERNEL if method == "kpcacam" else RAW)
    size = base.size[::-1]
    scaled = scale_cam_image(scale_cam_image(np.maximum(ours.numpy(), 0), size))
    np.testing.assert_allclose(scaled, shown.numpy(), atol=SHOWN)
