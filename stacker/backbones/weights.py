"""Where a backbone's weights come from: the hub, a file, a folder of files, or nowhere.

Files are in timm's layout, safetensors or `.pth`; what they match, lack and have too much is counted and
logged, and a trunk that is not matched whole is refused unless the config asks for it.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stacker.backbones.sources import trained_on, weights_file
from stacker.backbones.zoo import timm
from stacker.config.training import TrainConfig, WeightsConfig
from stacker.errors import BackboneError, LeakError

log = logging.getLogger(__name__)
Settings = dict[str, Any]


def require_files(backbones: Mapping[str, WeightsConfig]) -> None:
    """Raise BackboneError for weights that are to come from a file which is not there."""
    for name, settings in backbones.items():
        weights_file(name, settings)
        if settings.weights == "hub":
            require_published(name)


def require_unseen(backbones: Mapping[str, WeightsConfig], cases: Collection[str]) -> None:
    """Raise LeakError for weights of a base model, of any run, that some of these cases trained."""
    for name, settings in backbones.items():
        seen = sorted(set(trained_on(name, settings)) & set(cases))
        if seen:
            raise LeakError(
                f"backbones.{name}.weights: {settings.weights} was trained on {len(seen)} cases of this "
                f"run, e.g. {seen[0]}: no score of a model that starts from it could be trusted"
            )


def model_settings(name: str, size: tuple[int, int]) -> Settings:
    """Return the settings of a timm model that are made for one size of image."""
    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": size} if cfg is not None and cfg.fixed_input_size else {}


def drop_settings(recipe: TrainConfig) -> Settings:
    """Return dropout and drop-path as timm's models call them, where the recipe says anything."""
    wanted = {"drop_rate": recipe.dropout, "drop_path_rate": recipe.drop_path}
    return {name: rate for name, rate in wanted.items() if rate is not None}


def build(
    name: str, classes: int, settings: WeightsConfig, size: tuple[int, int], drop: Settings
) -> Any:
    """Return the timm model with a fresh classifier and the wanted weights in its trunk."""
    path = weights_file(name, settings)
    wanted = {"num_classes": classes, **model_settings(name, size), **drop}
    try:
        from_hub = settings.weights == "hub"
        model = _from_hub(name, wanted) if from_hub else timm.create_model(name, **wanted)
    except TypeError as error:
        refused = [key for key in wanted if f"'{key}'" in str(error)]
        if not refused:
            raise
        setting = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}.get(refused[0], refused[0])
        raise BackboneError(
            f"backbones.{name}: has no {setting}; leave it out for this backbone "
            f"(--set backbones.{name}.train.{setting}=null)"
        ) from None
    except AssertionError as error:
        raise BackboneError(f"backbones.{name}: not at images.size={size}: {error}") from None
    if path is not None:
        _load(name, model, path, settings.partial)
    _start_small(model)
    return model


def _start_small(model: Any) -> None:
    """Draw the new classifier again where its family makes it too large, as `reset_classifier` would.

    timm's EfficientNets, MobileNets and Inception scale it for their 1000 classes: of two, its weights
    are 8 to 30 times as large as torch's, and the first loss is 5 to 10 instead of ln 2. All others keep
    what they drew.
    """
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear) or classifier.weight.is_meta:
        return
    usual = 1 / math.sqrt(3 * classifier.in_features)  # the std of torch's uniform draw
    if classifier.weight.std() > 2 * usual:
        classifier.reset_parameters()


def require_published(name: str) -> None:
    """Raise BackboneError for a backbone that timm has no published weights of."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise BackboneError(
            f"backbones.{name}: timm has no published weights for it; give a file, or start from random "
            f"initialisation (--set backbones.{name}.weights=random)"
        )


def _from_hub(name: str, wanted: Settings) -> Any:
    """Return the model with hub weights; raise BackboneError that names the alternatives."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    require_published(name)
    cfg = timm.get_pretrained_cfg(name)
    try:
        if cfg.hf_hub_id and not try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors"):
            get_session().head(constants.ENDPOINT, timeout=5)  # fail in seconds, not after retries
        return timm.create_model(name, pretrained=True, **wanted)
    except TypeError:
        raise
    except Exception as error:  # the hub's client raises several unrelated families
        raise BackboneError(
            f"backbones.{name}: no weights from the hub ({type(error).__name__}: {error}); give a "
            f"local file (--set backbones.{name}.weights=PATH) or start from random initialisation "
            f"(--set backbones.{name}.weights=random)"
        ) from error


def _load(name: str, model: Any, path: Path, partial: bool) -> None:
    """Load a trunk from a file; raise BackboneError unless every trunk tensor is matched."""
    tensors = _read_tensors(name, path)
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is not None:  # resamples position embeddings to the size of the image
        tensors = adapt(tensors, model)
    wanted, head = model.state_dict(), _classifier_prefixes(model)
    trunk = [k for k in wanted if not k.startswith(head) and not k.endswith("num_batches_tracked")]
    matched = [k for k in trunk if k in tensors and tensors[k].shape == wanted[k].shape]
    missing = [k for k in trunk if k not in tensors]
    misshapen = [k for k in trunk if k in tensors and tensors[k].shape != wanted[k].shape]
    lacking = missing + misshapen
    if not matched or (lacking and not partial):
        raise BackboneError(
            f"backbones.{name}: {path} holds {len(matched)} of the {len(trunk)} trunk tensors; missing "
            f"or of another shape: {_some(lacking)}. Give a file in timm's layout, or initialise these "
            f"at random (--set backbones.{name}.partial=true)"
        )
    model.load_state_dict({key: tensors[key] for key in matched}, strict=False)
    lines = {
        "missing, initialised at random": missing,
        "of another shape, initialised at random": misshapen,
        "unexpected, ignored": [k for k in tensors if k not in wanted and not k.startswith(head)],
    }
    notes = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in lines.items() if keys]
    log.info("%s", "; ".join([f"{name}: {len(matched)} of {len(trunk)} trunk tensors matched", *notes]))


def _classifier_prefixes(model: Any) -> tuple[str, ...]:
    """Return how the names of the classifier's tensors begin: they are the run's own."""
    names = model.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"


def _read_tensors(name: str, path: Path) -> dict[str, Tensor]:
    """Read a file of tensors without running anything that it holds."""
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
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise BackboneError(
            f"backbones.{name}.weights: {path} holds a {type(content).__name__}, expected a state dict"
        )
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}
