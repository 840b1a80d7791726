"""AlexNet, which timm has not: torchvision's model under timm's contract, registered with timm.

Its state dict is torchvision's own, so that files of torchvision's weights load as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stacker.backbones.zoo import (
    TorchvisionAlexNet,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)

default_cfgs = generate_default_cfgs(
    {
        "alexnet.tv_in1k": {
            "url": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (6, 6),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "features.0",
            "classifier": "classifier.6",
        }
    }
)


class AlexNet(TorchvisionAlexNet):  # type: ignore[misc]  # torchvision is untyped
    """Krizhevsky 2014 in one column; the penultimate layer is the second of 4096 units."""

    pretrained_cfg: dict[str, Any]

    def __init__(self, num_classes: int = 1000, drop_rate: float = 0.5, in_chans: int = 3) -> None:
        if in_chans != 3:
            raise ValueError(f"alexnet takes images of 3 channels; found in_chans={in_chans}")
        super().__init__(num_classes=num_classes, dropout=drop_rate)
        self.num_classes = num_classes
        self.num_features, self.head_hidden_size = 256, 4096

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last pooled grid."""
        grid: Tensor = self.features(x)
        return grid

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the penultimate activations, of the last pooled grid."""
        layers = self.classifier[:-1] if pre_logits else self.classifier
        output: Tensor = layers(self.avgpool(x).flatten(1))
        return output

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.classifier[-1]
        return classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh linear layer of so many classes at the end."""
        self.num_classes = num_classes
        old = self.classifier[-1].weight
        self.classifier[-1] = nn.Linear(4096, num_classes, device=old.device, dtype=old.dtype)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Name the groups of layers, as timm's freezing and layer-wise decay want them."""
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}


@register_model  # type: ignore[untyped-decorator]
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """Build AlexNet through timm, which finds its weights by `default_cfgs`."""
    model: AlexNet = build_model_with_cfg(AlexNet, "alexnet", pretrained, **kwargs)
    return model
