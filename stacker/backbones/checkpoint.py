"""The file of a base model: its weights, and all that is needed to use and to trust them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import init
from torch.overrides import TorchFunctionMode

from stacker.backbones.backbone import Backbone, attach
from stacker.backbones.sources import read_facts
from stacker.backbones.weights import model_settings
from stacker.backbones.zoo import timm
from stacker.errors import BackboneError
from stacker.files import publish

IN_PLACE = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_")  # what initialisers come down to
DRAWING = {getattr(torch.Tensor, name) for name in IN_PLACE}
DRAWING |= {init.normal_, init.uniform_, init.trunc_normal_}  # handed over as they are


def save_checkpoint(path: Path, backbone: Backbone, facts: dict[str, Any]) -> None:
    """Publish the weights with what is to be known of them.

    The facts go in as one JSON string: safetensors does not keep the order of several entries, and
    equal models should be equal files.
    """
    model = {"name": backbone.name, "size": backbone.size, "mean": backbone.mean, "std": backbone.std}
    facts = {**model, "target_layer": backbone.target_layer, **facts}
    state = {k: v.detach().cpu().contiguous() for k, v in backbone.model.state_dict().items()}
    with publish(path) as temporary:
        save_file(state, temporary, metadata={"stacker": json.dumps(facts)})


def load_checkpoint(path: Path) -> tuple[Backbone, dict[str, Any]]:
    """Rebuild a fine-tuned base model from its file alone; raise BackboneError for what is none."""
    facts = read_facts(path)
    _require_plain(facts["name"], path)
    name, size = facts["name"], (facts["size"][0], facts["size"][1])
    wanted = {"num_classes": len(facts["classes"]), **model_settings(name, size)}
    model = _without_drawing(name, wanted)
    if model is None:
        model = timm.create_model(name, **wanted)
        model.load_state_dict(load_file(path))
    else:
        model.load_state_dict(load_file(path), assign=True)
    return attach(name, model, size, facts["mean"], facts["std"]), facts


def _require_plain(name: object, path: Path) -> None:
    """Raise BackboneError for a name that timm would look for elsewhere, as on the Hugging Face hub."""
    if not isinstance(name, str) or set(name) & set(":/"):
        raise BackboneError(
            f"{path} names the backbone {name!r}, expected one of timm's own models, e.g. resnet50: "
            "stacker did not write this file; copy it again, or train again"
        )


class _Undrawn(TorchFunctionMode):
    """Computes no first weights: of tensors without memory, torch would load its compiler for that."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, if it does not merely write numbers into a tensor without memory."""
        given = kwargs or {}
        if func in DRAWING and (tensor := args[0] if args else given["tensor"]).is_meta:
            return tensor
        return func(*args, **given)


def _without_drawing(name: str, wanted: dict[str, Any]) -> Any:
    """Return a model without memory: VGG-16 needs seconds to draw weights that are replaced at once.

    None for those whose constants are not part of their state, or need their values when they are built.
    """
    try:
        with torch.device("meta"), _Undrawn():
            model = timm.create_model(name, **wanted)
    except RuntimeError:
        return None
    state = set(model.state_dict())
    return model if all(key in state for key, _ in model.named_buffers()) else None
