"""A base model seen as two functions: a trunk that ends at the last spatial grid, and a head.

    activations_BChw = trunk(images_BCHW)            costs a forward pass
    embedding_BD, logits_BK = head(activations_BChw)     is cheap, and so are gradients through it

That cut is all that Grad-CAM needs, so no hook is ever registered. timm's contract (`forward_features`,
`forward_head(pre_logits=True)`) gives it for every convolutional model; VGG alone is cut before its last
max-pool, which keeps the 14x14 grid of the last convolution at 224 px. Weights come from the hub, a file
or random initialisation, and a partial match never passes silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models.vgg import VGG
from torch import Tensor, nn

from stacker.config import BackboneConfig, Channels
from stacker.errors import BackboneError, ConfigError, require_one_of
from stacker.run import publish

Trunk = Callable[[Tensor], Tensor]
Head = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Backbone:
    """A timm model, cut at `target_layer` into trunk and head, and the scaling of its input."""

    name: str
    model: nn.Module
    trunk: Trunk
    head: Head
    target_layer: str
    mean: Channels
    std: Channels

    def normalise(self, pixels_BHWC: Tensor) -> Tensor:
        """Turn uint8 pixels into the model's input; the permuted view is channels_last already."""
        mean = torch.tensor(self.mean, device=pixels_BHWC.device)
        std = torch.tensor(self.std, device=pixels_BHWC.device)
        return ((pixels_BHWC.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def freeze(self) -> Backbone:
        """Put the model in eval mode with frozen parameters, as stage two wants it."""
        self.model.eval().requires_grad_(False)
        return self


def require_known(names: list[str]) -> None:
    """Raise ConfigError for a backbone that timm does not have, with the nearest name."""
    require_one_of("timm model", [n for n in names if not timm.is_model(n)], timm.list_models())


def require_files(backbones: Mapping[str, BackboneConfig]) -> None:
    """Raise BackboneError for weights that are to come from a file which is not there."""
    for name, settings in backbones.items():
        if settings.weights not in ("hub", "random") and not Path(settings.weights).is_file():
            raise BackboneError(
                f"backbones.{name}.weights: no file at {settings.weights}; "
                "expected 'hub', 'random' or a path"
            )


def create(name: str, classes: int, settings: BackboneConfig) -> Backbone:
    """Build a backbone with a fresh head of `classes` outputs, starting from the wanted weights."""
    require_known([name])
    require_files({name: settings})
    if settings.weights == "hub":
        model = _from_hub(name, classes)
    else:
        model = timm.create_model(name, num_classes=classes)
        if settings.weights != "random":
            _load_weights(name, model, Path(settings.weights), settings.partial)
    cfg = model.pretrained_cfg
    backbone = _cut(name, model, settings.mean or cfg["mean"], settings.std or cfg["std"])
    _require_grid(name, model, backbone.trunk, backbone.head)
    return backbone


def _cut(name: str, model: Any, mean: Sequence[float], std: Sequence[float]) -> Backbone:
    """Cut a model into trunk and head, as timm's contract or VGG's layers have it."""
    model.to(memory_format=torch.channels_last)
    classifier: nn.Module = model.get_classifier()
    if isinstance(model, VGG):
        convolutions, last_pool = model.features[:-1], model.features[-1]

        def trunk(images_BCHW: Tensor) -> Tensor:
            found: Tensor = convolutions(images_BCHW)
            return found

        layer = f"features.{len(model.features) - 2}"
    else:
        trunk, last_pool, layer = model.forward_features, nn.Identity(), "forward_features"

    def head(activations_BChw: Tensor) -> tuple[Tensor, Tensor]:
        embedding_BD = model.forward_head(last_pool(activations_BChw), pre_logits=True)
        return embedding_BD, classifier(embedding_BD)

    return Backbone(name, model, trunk, head, layer, _channels(mean), _channels(std))


def _channels(values: Sequence[float]) -> Channels:
    red, green, blue = values
    return red, green, blue


def _require_grid(name: str, model: Any, trunk: Trunk, head: Head) -> None:
    """Try trunk and head on one image; raise BackboneError unless they are the model, over a grid."""
    side = model.pretrained_cfg["input_size"][-1]
    image = torch.zeros(1, 3, side, side)
    model.eval()
    try:
        with torch.no_grad():
            activations = trunk(image)
            grid = tuple(activations.shape)
            same = len(grid) == 4 and grid[1] == model.num_features
            same = same and torch.allclose(head(activations)[1], model(image), atol=1e-3)
    except RuntimeError as error:
        raise BackboneError(f"backbones.{name}: cannot be cut into trunk and head ({error})") from None
    if not same:
        raise BackboneError(
            f"backbones.{name}: its last features are of shape {grid}, expected (1, "
            f"{model.num_features}, h, w) with a linear classifier behind them; choose a convolutional "
            "backbone, e.g. resnet50"
        )


def _from_hub(name: str, classes: int) -> Any:
    """Return the model with hub weights; raise BackboneError that names the alternatives."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    cfg = timm.get_pretrained_cfg(name)
    repository = cfg.hf_hub_id if cfg else None
    try:
        if repository and not try_to_load_from_cache(repository, "model.safetensors"):
            get_session().head(constants.ENDPOINT, timeout=5)  # fail in seconds, not after retries
        return timm.create_model(name, pretrained=True, num_classes=classes)
    except Exception as error:  # the hub's client raises several unrelated families
        raise BackboneError(
            f"backbones.{name}: no weights from the hub ({type(error).__name__}: {error}); give a "
            f"local file (--set backbones.{name}.weights=PATH) or start from random initialisation "
            f"(--set backbones.{name}.weights=random)"
        ) from error


def _load_weights(name: str, model: Any, path: Path, partial: bool) -> None:
    """Load a trunk from a file; raise BackboneError unless every trunk tensor is matched."""
    found = _read_tensors(name, path)
    wanted = model.state_dict()
    classifiers = model.pretrained_cfg["classifier"]
    prefixes = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    trunk = {k for k in wanted if not k.startswith(tuple(f"{prefix}." for prefix in prefixes))}
    matched = {k: v for k, v in found.items() if k in trunk and v.shape == wanted[k].shape}
    missing = sorted(k for k in trunk - matched.keys() if not k.endswith("num_batches_tracked"))
    if not matched or (missing and not partial):
        raise BackboneError(
            f"backbones.{name}: {path} holds {len(matched)} of the {len(trunk)} trunk tensors; missing "
            f"or of another shape: {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}. Give a "
            f"file in timm's layout, or start those from random (--set backbones.{name}.partial=true)"
        )
    model.load_state_dict(matched, strict=False)


def _read_tensors(name: str, path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise BackboneError(f"backbones.{name}.weights: {path} cannot be read: {error}") from None
    except (UnpicklingError, AttributeError) as error:
        raise BackboneError(
            f"backbones.{name}.weights: {path} is not a plain file of tensors: {error}"
        ) from None
    for key in ("state_dict", "model"):
        content = content.get(key, content)
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}


def save_checkpoint(path: Path, backbone: Backbone, facts: dict[str, Any]) -> None:
    """Publish the weights with all that is needed to use and to trust them.

    The facts go in as one JSON string: safetensors does not keep the order of several entries, and
    equal models should be equal files.
    """
    layer = {"target_layer": backbone.target_layer}
    facts = {"name": backbone.name, "mean": backbone.mean, "std": backbone.std, **layer, **facts}
    state = {k: v.detach().cpu().contiguous() for k, v in backbone.model.state_dict().items()}
    with publish(path) as temporary:
        save_file(state, temporary, metadata={"stacker": json.dumps(facts)})


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, without reading its tensors."""
    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["stacker"])
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise BackboneError(
            f"{path} is not a base model of this program ({error}); delete it and train again"
        ) from None
    return facts


def load_checkpoint(path: Path) -> tuple[Backbone, dict[str, Any]]:
    """Rebuild a fine-tuned base model from its file alone."""
    facts = read_facts(path)
    name, classes = facts["name"], len(facts["classes"])
    with torch.device("meta"):  # VGG-16 needs seconds to draw random weights that are replaced at once
        model = timm.create_model(name, num_classes=classes)
    model.load_state_dict(load_file(path), assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):  # not all buffers are part of the state
        model = timm.create_model(name, num_classes=classes)
        model.load_state_dict(load_file(path))
    return _cut(name, model, facts["mean"], facts["std"]), facts


def choose_device(wanted: str) -> torch.device:
    """Return the wanted device, or the best one at hand for 'auto'."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device: {wanted} is not here ({found} CUDA devices found); use 'auto'")
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 for 'auto' where the hardware multiplies it natively, else float32."""
    if wanted == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
            native = any(getattr(torch.cpu, check, bool)() for check in checks)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the autocast context of a trunk pass; it does nothing in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
