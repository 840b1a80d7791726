"""What a cached image costs, beside a bare forward pass and the grad-cam package.

Stage two as it runs (images from the store, all classes, parts synced to the disk) is timed on the same
images as a bare forward pass of the same base models in the same arithmetic, and as the grad-cam package
twice: in batches, of the size and in the memory layout that suit it best, and in the loop that people
write, an image and a model at a time. Both are float32 with a full backward pass and give the map of one
class. All ways but stage two find their pixels normalised, in the memory of the device, and write
nothing: that favours them. The bare pass gets stage two's way with memory (`devices.keep_memory`), the
package that of any program. What it takes for several base models is the sum, for it goes from one to
the next.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.devices import Machine, Subset, autocast, keep_memory
from stacker.bench.images import shuffled_images
from stacker.bench.peers import SIZES, Peer, find_peers
from stacker.bench.timing import in_turn, seconds
from stacker.caches.format import Provenance, Rows, describe_preprocessing, fixed_text, part_file
from stacker.config.root import Config
from stacker.data.manifest import Manifest
from stacker.errors import CacheError, ConfigError, RunError
from stacker.files import file_sha256
from stacker.maps.extract import Arrays, classifier_bias, extract
from stacker.maps.fill import Portion, write_portions
from stacker.run import Run

OURS, BARE, BATCHED, LOOP = "stacker cache", "bare forward", "grad-cam, batched", "grad-cam, naive loop"
TOGETHER = "all together"
BATCHED_IMAGES, LOOP_IMAGES = 16, 8  # the package is slow
UNTRAINED = "not trained"

Ways = dict[tuple[str, str], tuple[int, Callable[[], object]]]  # way, base model: images, how


@dataclass(frozen=True)
class Cost:
    """What one way takes per image: the median of the repeats, and all of them."""

    way: str
    of: str
    images: int
    milliseconds: float
    repeats: tuple[float, ...]


@dataclass(frozen=True)
class Ratio:
    """Stage two's time as a share of a bare forward pass, and how many times longer grad-cam takes."""

    of: str
    bare: float
    batched: float | None
    loop: float | None


@dataclass(frozen=True)
class Work:
    """What all ways share: the images and who they are, the base models and what made them."""

    config: Config
    machine: Machine
    part: Subset
    rows: Rows
    backbones: dict[str, Backbone]
    origins: dict[str, Provenance]


def bench_cache(config: Config, images: int, repeats: int) -> dict[str, Any]:
    """Time all ways in turn on so many images; return what was timed, costs, ratios and a verdict."""
    work = _prepare(config, images)
    device, backbones = work.machine.device, work.backbones
    inputs = {name: _normalised(work, backbone) for name, backbone in backbones.items()}
    few = {name: (backbones[name], pixels[: max(SIZES)]) for name, pixels in inputs.items()}
    keep_memory(False)
    peers, notes = find_peers(few, device)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=config.artifacts) as folder:
        costs = _measure(_ways(work, inputs, peers, Path(folder)), repeats, device)
        parts = {name: list(Path(folder, name).glob("part-*.h5")) for name in backbones}
        sizes = {name: sum(path.stat().st_size for path in parts[name]) / images for name in backbones}
    costs += sums(costs, list(backbones))
    compared = ratios(costs)
    return {
        "size": config.images.shape,
        "images": images,
        "batch_size": config.cam.batch_size,
        "precision": str(work.machine.precision),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "maps": list(config.cam.maps),
        "subjects": [_subject(origin, sizes, peers) for origin in work.origins.values()],
        "costs": costs,
        "ratios": compared,
        "deviations": _deviations(work),
        "notes": notes,
        "verdict": verdict(compared[-1]),
    }


def _prepare(config: Config, images: int) -> Work:
    """Draw the images and put the base models on the device; raise ConfigError for too many images."""
    machine = Machine.of(config).set_up()
    manifest, pixels, order = shuffled_images(config)
    if images > (there := len(order)):
        raise ConfigError(f"--images {images}: there are {there} images; ask for {there} at most")
    chosen = np.sort(order[:images])
    cases = fixed_text([manifest.cases[row] for row in chosen])
    rows = Rows(
        label=manifest.labels[chosen],
        image_id=fixed_text([manifest.images[row].id for row in chosen]),
        case_id=cases,
        group_id=cases,
        fold=fixed_text(["bench"] * images),
    )
    models = {name: _base_model(config, name, manifest, machine) for name in config.backbones}
    backbones = {name: backbone for name, (backbone, _) in models.items()}
    origins = {name: origin for name, (_, origin) in models.items()}
    return Work(config, machine, Subset(pixels, manifest.labels, chosen), rows, backbones, origins)


def _base_model(
    config: Config, name: str, manifest: Manifest, machine: Machine
) -> tuple[Backbone, Provenance]:
    """Return the run's first base model of a backbone, or what it would start from, and its origin."""
    fold = "fold0" if config.folds.protocol == "crossfit" else "holdout"
    path, images, cam = Run(config.run_path, config).model_file(name, fold), config.images, config.cam
    sha256, cases = UNTRAINED, []
    if path.exists():
        backbone, facts = load_checkpoint(path)
        if backbone.size != images.shape or tuple(facts["classes"]) != manifest.classes:
            raise RunError(
                f"{path} was trained on other classes or at another size ({backbone.size}) than this "
                "config's; give this config another 'run' name (--set run=NAME)"
            )
        sha256, cases = file_sha256(path), facts["training_cases"]
    else:
        torch.manual_seed(config.seed)
        backbone = create(name, len(manifest.classes), config.backbones[name], images.shape)
    backbone.freeze().model.to(machine.device)
    preprocessing = describe_preprocessing(images.size, images.resize, backbone.mean, backbone.std)
    return backbone, Provenance(
        *(name, fold, manifest.classes, config.folds.group, sha256, manifest.digest, "no split"),
        *(tuple(cases), backbone.target_layer, tuple(cam.methods), cam.lower, preprocessing),
        precision=str(machine.precision).removeprefix("torch."),
        lower_layers=tuple(backbone.layers_below(cam.lower)[::-1]),
        classifier_bias=classifier_bias(backbone),
    )


def _normalised(work: Work, backbone: Backbone) -> Tensor:
    """Return the images as a base model wants them, on the device."""
    batches = work.part.batches(work.part.rows, work.config.cam.batch_size, work.machine.device)
    return torch.cat([backbone.normalise(pixels) for pixels, _ in batches])


def _ways(work: Work, inputs: Mapping[str, Tensor], peers: Mapping[str, Peer], folder: Path) -> Ways:
    """List the ways: stage two and the bare pass for each base model and for all, grad-cam for each."""
    images, names = len(work.rows), list(work.backbones)
    groups = {name: [name] for name in names} | ({TOGETHER: names} if len(names) > 1 else {})
    ways: Ways = {}
    for of, group in groups.items():
        ways[OURS, of] = images, partial(_cache, work, group, folder)
        ways[BARE, of] = images, partial(_forward, work, group, inputs)
    for name, peer in peers.items():
        several, few = min(images, max(BATCHED_IMAGES, peer.batch_size)), min(images, LOOP_IMAGES)
        ways[BATCHED, name] = several, partial(peer.batched, several)
        ways[LOOP, name] = few, partial(peer.loop, few)
    return ways


def _cache(work: Work, names: Sequence[str], folder: Path) -> None:
    """Let stage two write the parts of some base models."""
    cam, portions = work.config.cam, []
    for number, start in enumerate(range(0, len(work.rows), cam.part_rows)):
        piece = slice(start, start + cam.part_rows)
        parts = {name: (part_file(folder / name, number), work.origins[name]) for name in names}
        portions.append(Portion(work.part.rows[piece], work.rows.take(piece), parts))
    backbones = {name: work.backbones[name] for name in names}
    wanted = dict.fromkeys(names, cam.maps)
    failures = write_portions(
        portions, backbones, wanted, work.part, cam.batch_size, work.machine, lambda _: None
    )
    if failures:
        raise CacheError("\n  ".join(failures.values()))


def _forward(work: Work, names: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Run the models, and nothing else."""
    size = work.config.cam.batch_size
    with torch.no_grad():
        for start in range(0, len(work.rows), size):
            for name in names:
                with autocast(work.machine.device, work.machine.precision):
                    work.backbones[name].model(inputs[name][start : start + size])


def _measure(ways: Ways, repeats: int, device: torch.device) -> list[Cost]:
    """Time all ways in turn.

    After the package has had the machine, a run that does not count fills stage two's memory again.
    """

    def milliseconds(way: str, of: str) -> float:
        keep_memory(device.type == "cpu" and way in (OURS, BARE))
        images, run = ways[way, of]
        return 1000 * seconds(run, device) / images

    fill = [of for way, of in ways if way == OURS][-1]
    turn = {("fill the memory", fill): partial(milliseconds, OURS, fill)}
    turn |= {(way, of): partial(milliseconds, way, of) for way, of in ways}
    taken = in_turn(turn, repeats)
    return [cost_of(way, of, images, taken[way, of]) for (way, of), (images, _) in ways.items()]


def cost_of(way: str, of: str, images: int, repeats: Sequence[float]) -> Cost:
    """Return what a way takes per image, in milliseconds, from all that was measured."""
    rounded = tuple(round(value, 3) for value in repeats)
    return Cost(way, of, images, round(statistics.median(repeats), 3), rounded)


def sums(costs: Sequence[Cost], names: Sequence[str]) -> list[Cost]:
    """Return what grad-cam takes for all base models, where it could be run on all of them."""
    total = []
    for way in (BATCHED, LOOP):
        single = [cost for cost in costs if cost.way == way]
        if len(names) > 1 and len(single) == len(names):
            repeats = [sum(taken) for taken in zip(*(cost.repeats for cost in single), strict=True)]
            total.append(cost_of(way, TOGETHER, min(cost.images for cost in single), repeats))
    return total


def ratios(costs: Sequence[Cost]) -> list[Ratio]:
    """Compare stage two with the other ways, for each base model and, last, for all."""
    taken = {(cost.way, cost.of): cost.milliseconds for cost in costs}

    def longer(way: str, of: str) -> float | None:
        return round(taken[way, of] / taken[OURS, of], 2) if (way, of) in taken else None

    return [
        Ratio(of, round(ours / taken[BARE, of], 3), longer(BATCHED, of), longer(LOOP, of))
        for (way, of), ours in taken.items()
        if way == OURS
    ]


def verdict(ratio: Ratio) -> str:
    """Say what stage two costs beside the others."""
    said = [f"{ratio.of}: {ratio.bare:.2f}x the time of a bare forward pass"]
    if ratio.batched is not None:
        said.append(f"{BATCHED} takes {ratio.batched:.1f}x as long")
    if ratio.loop is not None:
        said.append(f"{LOOP} {ratio.loop:.1f}x as long")
    return "; ".join(said)


def _subject(
    origin: Provenance, sizes: Mapping[str, float], peers: Mapping[str, Peer]
) -> dict[str, object]:
    """Say which base model was measured, and the package's layer, batch and layout where it has any."""
    peer = peers.get(origin.backbone)
    return {
        "backbone": origin.backbone,
        "start": "as they start" if origin.checkpoint_sha256 == UNTRAINED else "trained",
        "bytes_per_image": round(sizes[origin.backbone], 1),
        **{f"peer_{key}": getattr(peer, key, None) for key in ("layer", "batch_size", "layout")},
    }


def _deviations(work: Work) -> list[dict[str, Any]] | None:
    """Compare the answers in bfloat16 with those in float32; None when stage two runs in float32."""
    if work.machine.precision == torch.float32:
        return None
    part, cam = work.part, work.config.cam

    def answer(precision: torch.dtype) -> dict[str, Arrays]:
        batches = part.batches(part.rows, cam.batch_size, work.machine.device)
        wanted = dict.fromkeys(work.backbones, cam.maps)
        return extract(work.backbones, (pixels for pixels, _ in batches), wanted, precision)

    rounded, exact = answer(work.machine.precision), answer(torch.float32)
    return [deviation(name, rounded[name], exact[name]) for name in work.backbones]


def deviation(
    name: str, rounded: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return how far a base model's answers in bfloat16 are from those in float32.

    Logits as they are; maps and embeddings as shares of the largest absolute value in float32.
    """
    gaps = {}
    for key, values in exact.items():
        scale = 1.0 if key == "logits" else float(np.abs(values).max()) or 1.0
        apart = np.abs(rounded[key] - values) / scale
        gaps[key] = {"maximum": float(apart.max()), "mean": float(apart.mean())}
    changed = rounded["logits"].argmax(axis=1) != exact["logits"].argmax(axis=1)
    return {
        "backbone": name,
        "logits": gaps.pop("logits"),
        "embeddings": gaps.pop("features"),
        "maps": gaps,
        "changed_predictions": int(changed.sum()),
    }
