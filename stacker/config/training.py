"""The sections of stage one: where a backbone starts, how it is trained, what of that is searched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from stacker.config.section import Section

Channels = tuple[float, float, float]
Balance = Literal["weights", "sampling", "cases", "none"]
Monitor = Literal["auc+balanced_accuracy", "auc", "balanced_accuracy", "loss", "last"]


def _trainable(raw: Any) -> Any:
    """Speak for the whole union at once: pydantic alone would report each of its members."""
    if raw in ("all", "head") or (isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1):
        return raw
    raise ValueError(f"expected all, head, or a number of last stages, found {raw!r}")


Trainable = Annotated[Literal["all", "head"] | int, BeforeValidator(_trainable)]


class AugmentConfig(Section):
    """How a training image is varied, each by its own draw; validation images never are.

    A tissue section has no up or down, so all symmetries of the rectangle are equally likely. Rotation
    is in degrees to either side; stain jitter varies haematoxylin and eosin apart; mixup and cutmix are
    the parameters of their beta distributions.
    """

    flips: bool = True
    quarter_turns: bool = True
    rotation: float = Field(0.0, ge=0, le=180)
    colour_jitter: float = Field(0.1, ge=0, le=1)
    stain_jitter: float = Field(0.0, ge=0, le=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)


class TrainConfig(Section):
    """The fine-tuning recipe of stage one.

    `trainable` is all, the head, or the head and the last n stages; `unfreeze` says what it becomes
    after so many epochs. `decay_rate` is what schedule `step` multiplies the learning rate with every
    `decay_epochs`, and `plateau` after `decay_patience` epochs without a lower validation loss.
    """

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(32, ge=2)
    accumulate: int = Field(1, ge=1)
    optimizer: str = "adamw"
    lr: float = Field(3e-4, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    schedule: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    warmup: float = Field(0.25, ge=0, lt=1)
    decay_rate: float = Field(0.1, gt=0, lt=1)
    decay_epochs: int = Field(10, ge=1)
    decay_patience: int = Field(5, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    balance: Balance = "weights"
    trainable: Trainable = "all"
    unfreeze: dict[Annotated[int, Field(ge=1)], Trainable] = Field(default={})
    dropout: float | None = Field(None, ge=0, lt=1)
    drop_path: float | None = Field(None, ge=0, lt=1)
    ema: float | None = Field(None, gt=0, lt=1)
    augment: AugmentConfig = AugmentConfig()
    monitor: Monitor = "auc+balanced_accuracy"
    patience: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _settings_go_together(self) -> TrainConfig:
        if self.accumulate > self.batch_size // 2:
            raise ValueError(
                f"accumulate={self.accumulate} splits a batch of {self.batch_size} into steps of fewer "
                f"than two images; the maximum is {self.batch_size // 2}"
            )
        if self.unfreeze and max(self.unfreeze) >= self.epochs:
            last = max(self.unfreeze)
            raise ValueError(f"unfreeze after {last} epochs has no effect: epochs={self.epochs}")
        if self.monitor == "last" and self.patience is not None:
            raise ValueError("patience needs a validation score, and monitor=last uses none")
        return self

    @property
    def resume_copies(self) -> int:
        """How often the weights lie in a resume file: now, at their best, two moments, the EMA."""
        return 4 + (self.ema is not None)

    def trainable_in(self, epoch: int) -> Trainable:
        """Return what is trained in an epoch, counted from 1."""
        begun = [after for after in self.unfreeze if after < epoch]
        return self.unfreeze[max(begun)] if begun else self.trainable


class WeightsConfig(Section):
    """Where a backbone starts from: hub, random, a file, or a folder of files named after backbones."""

    weights: str = "hub"
    partial: bool = False
    mean: Channels | None = None
    std: Channels | None = None


class BackboneConfig(WeightsConfig):
    """A backbone that is fine-tuned: where it starts from, and what it does differently from `train`."""

    train: dict[str, Any] = Field(default={})


class Range(Section):
    """What `stacker tune` may choose for one setting: numbers from low to high, or one of some."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: list[Any] | None = Field(None, min_length=2)

    @model_validator(mode="after")
    def _numbers_or_choices(self) -> Range:
        bounds = self.low is not None and self.high is not None
        if bounds == (self.choices is not None):
            raise ValueError("set either low and high, or choices")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.whole and any(bound != int(bound) for bound in (self.low or 0, self.high or 0)):
            raise ValueError(f"whole=true needs whole numbers, found {self.low} and {self.high}")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError(f"log=true needs low above 0, found {self.low}")
        return self


class TuneConfig(Section):
    """What `stacker tune` searches: settings by their dotted names, and how long."""

    space: dict[str, Range] = Field(min_length=1)
    trials: int = Field(30, ge=1)
    folds: int = Field(3, ge=2)
    score: Literal["auc", "balanced_accuracy", "accuracy"] = "auc"
    unit: Literal["image", "case"] = "image"
    prune: bool = True
