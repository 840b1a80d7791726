"""Which layers of a model are trained: its stages, the freeze policy, and the loss's own head.

A stage is what timm's `group_matcher` says (`layer3` of a ResNet, a dense block with its transition, a
block of a vision transformer); VGG's and AlexNet's end with a max-pool. What belongs to no stage is the
head. What is frozen stays in eval mode: its batch normalisation does not drift, its dropout is off.
"""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from timm.models.vgg import VGG
from torch import nn

from stacker.backbones.alexnet import AlexNet
from stacker.config.training import Trainable, TrainConfig
from stacker.errors import BackboneError


def stages(model: Any) -> list[list[str]]:
    """Return the names of each stage's parameters, from the stem on; the last entry is the head."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, VGG | AlexNet):
        return _stages_between_pools(model, names)
    grouped = group_parameters(model, model.group_matcher(coarse=True))
    groups = [grouped[key] for key in sorted(grouped)]
    classifier = {id(p) for p in model.get_classifier().parameters()}
    head = [name for name, p in model.named_parameters() if id(p) in classifier]
    if groups and set(head) <= set(groups[-1]):
        return groups
    rest = [[name for name in group if name not in head] for group in groups]
    return [*filter(None, rest), head]


def require_stages(backbone: str, model: Any, recipe: TrainConfig) -> None:
    """Raise BackboneError where a recipe trains more stages than there are, now or later."""
    count = len(stages(model)) - 1
    for wanted in (recipe.trainable, *recipe.unfreeze.values()):
        if isinstance(wanted, int) and wanted > count:
            raise BackboneError(
                f"backbones.{backbone}: {wanted} stages are to be trained and it has {count}; "
                "say 'all' to train everything"
            )


def _stages_between_pools(model: Any, names: list[str]) -> list[list[str]]:
    """Cut a row of convolutions into stages behind its max-pools."""
    stage_of, stage = {}, 0
    for number, layer in enumerate(model.features):
        stage_of[f"features.{number}"] = stage
        stage += isinstance(layer, nn.MaxPool2d)
    grouped: dict[int, list[str]] = {}
    for name in names:
        grouped.setdefault(stage_of.get(".".join(name.split(".")[:2]), stage + 1), []).append(name)
    return [grouped[key] for key in sorted(grouped)]


def set_trainable(model: Any, wanted: Trainable) -> int:
    """Freeze all but the wanted part, and put that in training mode; return its number of parameters."""
    groups = stages(model)
    count = len(groups) if wanted == "all" else 1 if wanted == "head" else 1 + wanted
    names = {name for group in groups[-count:] for name in group}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
