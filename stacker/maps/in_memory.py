"""Maps of all classes, logits and embeddings by any timm-like model, without a run.

The model is copied, and the copy split into trunk and head: the original keeps its hooks, flags, mode,
device and layout. Each call first checks that the two halves equal the model, which costs some forward
passes of one image: pass many images to one call, as a list of paths or a loader of batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from stacker.backbones.backbone import Backbone, attach, require_same
from stacker.backbones.devices import choose_precision
from stacker.config.data import ImagesConfig
from stacker.config.maps import PERTURBING, MethodName
from stacker.data.images import Shown, UnusableError, decode, decode_picture, each_of, require_pixels
from stacker.errors import BackboneError, ConfigError, DataError, require_one_of
from stacker.maps.cam import Output, Wanted, look

CONTRACT = ("forward_features", "forward_head", "get_classifier")
PRECISIONS = ("fp32", "bf16", "auto")
Images: TypeAlias = Tensor | Shown | Iterable[Shown] | Iterable[Tensor] | Iterable[Sequence[Tensor]]


class Cams(NamedTuple):
    """What a model says of N images, as float32 arrays: maps signed and unscaled at the grid's own size.

    Methods that know no class give one map for all (N, 1, h, w).
    """

    maps: np.ndarray  # (N, K, h, w)
    logits: np.ndarray  # (N, K)
    embeddings: np.ndarray  # (N, D)

    def __repr__(self) -> str:
        """Say what is here."""
        arrays = zip(self._fields, self, strict=True)
        return ", ".join(f"{name} {values.shape}" for name, values in arrays)


def cam(
    model: nn.Module,
    images: Images,
    method: str = "gradcam",
    *,
    lower: int = 0,
    batch_size: int = 32,
    precision: str = "fp32",
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
) -> Cams:
    """Return the maps of all classes, logits and embeddings, in one pass on the model's device.

    Images are float tensors (B, 3, H, W), normalised already: one, or any number of batches, such as a
    loader yields; or paths, PIL images and uint8 arrays (H, W, 3), which are brought to `size` and
    scaled by `mean` and `std`: by default those of the model's `pretrained_cfg`. `lower` takes the maps
    of so many stages below the last grid. Raise BackboneError for a model that has no grid with one
    linear classifier behind it, DataError for an image that cannot be read.
    """
    require_one_of("method", [method], get_args(MethodName))
    require_one_of("precision", [precision], PRECISIONS)
    if lower < 0 or batch_size < 1:
        raise ConfigError(
            f"cam: lower={lower}, batch_size={batch_size}, expected lower >= 0 and batch_size >= 1"
        )
    if lower and method in PERTURBING:
        raise ConfigError(
            f"cam: lower={lower}, but {method} has maps of the last grid only", "set lower=0"
        )
    wanted = {"maps": (method, lower)}
    facts = _facts(model, size, mean, std)
    batches = _batches(images, ImagesConfig(size=facts["size"]), batch_size)
    outputs: list[Output] = []
    backbone: Backbone | None = None
    with torch.inference_mode(mode=False):
        for batch in batches:
            if backbone is None:
                backbone = _backbone(model, batch, facts)
                backbone.layers_below(lower)
            outputs.append(_answer(backbone, batch, wanted, precision))
    if not outputs:
        raise DataError("cam: no image given")
    return Cams(
        maps=torch.cat([output.maps["maps"] for output in outputs]).numpy(),
        logits=torch.cat([output.logits_BK for output in outputs]).numpy(),
        embeddings=torch.cat([output.embedding_BD for output in outputs]).numpy(),
    )


def _facts(
    model: Any,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | np.ndarray | None,
    std: Sequence[float] | np.ndarray | None,
) -> dict[str, Any]:
    """Return size and scaling of a model's input; raise BackboneError for what is no timm-like model."""
    lacking = [name for name in CONTRACT if not callable(getattr(model, name, None))]
    if lacking:
        raise BackboneError(
            f"cam: {type(model).__name__} has no {', '.join(lacking)}, expected a timm model or a "
            "module with the same methods",
            "e.g. timm.create_model('resnet50', pretrained=True)",
        )
    known = getattr(model, "pretrained_cfg", None) or {}
    input_size = known.get("input_size", (3, 224, 224))
    return {
        "size": (size, size) if isinstance(size, int) else tuple(size or input_size[1:]),
        "mean": tuple(known.get("mean") or () if mean is None else mean),
        "std": tuple(known.get("std") or () if std is None else std),
    }


def _backbone(model: nn.Module, batch: Tensor, facts: dict[str, Any]) -> Backbone:
    """Return a frozen float32 copy of a model, cut for images like those of the first batch."""
    raw = batch.dtype == torch.uint8
    if raw and not (facts["mean"] and facts["std"]):
        raise BackboneError(
            f"cam: {type(model).__name__} has no pretrained_cfg with the mean and std of its input",
            "pass mean and std, e.g. mean=(0.485, 0.456, 0.406), or tensors that are normalised already",
        )
    height, width = batch.shape[1:3] if raw else batch.shape[2:4]
    scaling = (facts["mean"] or (0.0, 0.0, 0.0), facts["std"] or (1.0, 1.0, 1.0))
    copy = deepcopy(model).float()
    with _device(copy):  # trunk and head are tried on images that are made where the model lies
        backbone = attach(type(model).__name__, copy, (height, width), *scaling)
        require_same(backbone)
    return backbone.freeze()


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _answer(backbone: Backbone, batch: Tensor, wanted: Wanted, precision: str) -> Output:
    """Return what a backbone says of a batch, in the memory of the CPU: there may be many."""
    device = _device(backbone.model)
    batch = batch.to(device)
    images_BCHW = backbone.normalise(batch) if batch.dtype == torch.uint8 else batch.float()
    if tuple(images_BCHW.shape[2:]) != backbone.size:
        raise DataError(
            f"cam: a batch of shape {tuple(batch.shape)} follows images of {backbone.size}",
            "pass images of one size per call",
        )
    said = look(backbone, images_BCHW.detach(), wanted, choose_precision(precision, device))
    maps = {name: values.cpu() for name, values in said.maps.items()}
    return Output(said.embedding_BD.cpu(), said.logits_BK.cpu(), maps)


def _batches(images: Images, config: ImagesConfig, size: int) -> Iterator[Tensor]:
    """Yield normalised batches (B, 3, H, W) as they are given, others as uint8 (B, H, W, 3)."""
    source = iter([images] if isinstance(images, Tensor) else each_of(images))
    first = next(source, None)
    everything = source if first is None else chain([first], source)
    if isinstance(first, Tensor | list | tuple):
        for batch in everything:
            yield from _checked(batch).split(size)
    else:
        yield from _decoded(everything, config, size)


def _checked(batch: Any) -> Tensor:
    """Return the images of a batch, which may bring labels with it; raise DataError for others."""
    images = batch[0] if isinstance(batch, list | tuple) else batch
    if isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4:
        return images
    given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images)
    raise DataError(
        f"cam: found {given}, expected a normalised float tensor (B, 3, H, W)",
        "pass images that are not normalised as uint8 arrays (H, W, 3)",
    )


def _decoded(images: Iterator[Shown], config: ImagesConfig, size: int) -> Iterator[Tensor]:
    """Yield images as batches of pixels; threads read the next batch while one is worked on."""
    with ThreadPoolExecutor() as pool:

        def ask() -> list[Future[np.ndarray]]:
            return [pool.submit(_pixels, image, config) for image in islice(images, size)]

        pending = ask()
        while pending:
            following = ask()
            yield torch.from_numpy(np.stack([future.result() for future in pending]))
            pending = following


def _pixels(image: Shown, config: ImagesConfig) -> np.ndarray:
    if isinstance(image, str | Path):
        return decode(image, config)
    require_pixels(image)
    try:
        return decode_picture(image, config)
    except UnusableError as error:
        raise DataError(f"cam: an image in memory: {error}") from None
