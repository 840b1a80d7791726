"""What stage two costs is measured beside what it is compared with; how fast, is left to the machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM

from stacker.backbones.backbone import Backbone, create
from stacker.backbones.checkpoint import save_checkpoint
from stacker.bench import peers as bench_peers
from stacker.bench import work
from stacker.bench.cache import bench_cache
from stacker.bench.costs import (
    BARE,
    BATCHED,
    LOOP,
    OURS,
    TOGETHER,
    cost_of,
    deviation,
    ratios_of,
    sums,
    verdict,
)
from stacker.bench.peers import find_peers, package_cam, peer_layer
from stacker.config.root import Config
from stacker.config.training import BackboneConfig
from stacker.errors import RunError
from tests.commands import call, expect_refusal

NAMES = ("test_resnet", "test_efficientnet")
BACKBONES = {name: {"weights": "random"} for name in NAMES}


@pytest.fixture(autouse=True)
def _few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_peers, "SIZES", (1, 4))


def test_every_way_is_timed_for_every_base_model_and_for_all(write_config: Callable[..., Path]) -> None:
    """As often as asked for; the ratios are those of the times, and nothing is left on the disk."""
    path = write_config(precision="bf16")
    options = ("--images", "20", "--repeats", "2", "--set", "cam.methods=[gradcam, layercam]", "--json")
    bench = json.loads(call("bench", "cache", path, *options).stdout)
    costs = {(c["of"], c["way"]): c for c in bench["costs"]}
    assert set(costs) == {(of, way) for of in (*NAMES, TOGETHER) for way in (OURS, BARE, BATCHED, LOOP)}
    assert all(len(c["repeats"]) == 2 and c["milliseconds"] > 0 for c in costs.values())
    assert {c["images"] for (_, way), c in costs.items() if way in (OURS, BARE)} == {20}
    for ratio in bench["ratios"]:
        ours, bare, loop = (costs[ratio["of"], w]["milliseconds"] for w in (OURS, BARE, LOOP))
        assert ratio["bare"]["value"] == pytest.approx(ours / bare, rel=0.01)
        assert ratio["loop"]["value"] == pytest.approx(loop / ours, rel=0.01)
        assert ratio["bare"]["rough"]  # two repeats
    assert (bench["precision"], bench["device"], bench["images"]) == ("torch.bfloat16", "cpu", 20)
    assert bench["maps"] == ["maps", "maps_layercam"]
    assert bench["threads"] == torch.get_num_threads()
    assert not list((path.parent / "artifacts").glob(".bench-*"))


def test_what_was_measured_is_said(make_config: Callable[..., Config]) -> None:
    """Where a base model comes from, the bytes of its rows, and the package's best batch."""
    bench = bench_cache(make_config(precision="fp32"), 12, 1)
    assert [subject["backbone"] for subject in bench["subjects"]] == list(NAMES)
    for subject in bench["subjects"]:
        assert subject["start"] == "not trained yet"
        assert subject["bytes_per_image"] > 100
        assert subject["peer_batch_size"] in (1, 4)
        assert subject["peer_layout"] in ("contiguous", "channels_last")
    assert bench["subjects"][0]["peer_layer"] == "layer4"
    assert bench["deviations"] is None
    assert bench["verdict"].startswith("all together: ")


def test_bfloat16_is_compared_with_float32(make_config: Callable[..., Config]) -> None:
    """On the same images: it deviates, and not by much."""
    bench = bench_cache(make_config(precision="bf16"), 12, 1)
    assert [model["backbone"] for model in bench["deviations"]] == list(NAMES)
    for model in bench["deviations"]:
        for gap in (model["logits"], model["embeddings"], model["maps"]["maps"]):
            assert 0 < gap["mean"] <= gap["maximum"] < 0.2
        assert 0 <= model["changed_predictions"] <= 12


def test_tables_and_verdict_are_for_people(write_config: Callable[..., Path]) -> None:
    """All ways, all base models, the deviation and one sentence; estimate and rows come before."""
    options = ("--images", "8", "--repeats", "1", "--set", "precision=bf16")
    done = call("bench", "cache", write_config(), *options)
    shown, said = done.stdout, done.stderr
    assert "takes about " in said
    assert ": 8 images, 1 repeat" in said
    assert (
        said.index("takes about ")
        < said.index(f"{NAMES[0]}, per image")
        < said.index(f"{NAMES[1]}, per")
    )
    for text in (*NAMES, TOGETHER, "bare", "naive loop", "kB per image", "bfloat16 against float32"):
        assert text in shown
    assert "the time of a bare forward pass" in shown.splitlines()[-1]
    assert shown.splitlines()[-1].endswith("medians of 1 repeat on 8 images")
    assert "rough: fewer than 3 repeats" in shown


def test_one_trained_base_model_is_all_there_is(make_config: Callable[..., Config]) -> None:
    """It is the run's first fold's; nothing is summed up, and one of other classes is refused."""
    config = make_config(backbones={"test_resnet": {"weights": "random"}}, precision="fp32")
    path = config.run_path / "models" / "test_resnet" / "holdout" / "model.safetensors"
    base = create("test_resnet", 2, BackboneConfig(weights="random"), (32, 32))
    facts = {"classes": ("benign", "malignant"), "training_cases": ["a"], "identity": ""}
    save_checkpoint(path, base, facts)
    bench = bench_cache(config, 4, 1)
    assert bench["subjects"][0]["start"] == "trained"
    assert [ratio.of for ratio in bench["ratios"]] == ["test_resnet"]
    assert bench["verdict"].startswith("test_resnet: ")
    save_checkpoint(path, base, {**facts, "classes": ("cat", "dog")})
    with pytest.raises(RunError, match="other classes"):
        bench_cache(config, 4, 1)


def test_more_images_than_there_are_is_refused(write_config: Callable[..., Path]) -> None:
    """With the number that there are."""
    done = call("bench", "cache", write_config(), "--images", "800")
    expect_refusal(done, 2, "--images 800", "72 images")
    expect_refusal(call("bench", "cache", write_config(), "--images", "0"), 2, "--images")


def test_without_the_package_the_rest_is_measured(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out, and that is said."""
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    bench = bench_cache(make_config(precision="fp32"), 4, 1)
    (note,) = bench["notes"]
    assert note.startswith("grad-cam was left out: the package is not installed")
    assert "pip install -e '.[bench]'" in note
    assert {cost.way for cost in bench["costs"]} == {OURS, BARE}
    assert all(ratio.batched is None and ratio.loop is None for ratio in bench["ratios"])
    assert "grad-cam" not in bench["verdict"]
    assert bench["subjects"][0]["peer_layer"] is None


def test_a_family_without_a_module_at_its_last_grid_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others stay, and nobody adds up what is not whole."""
    images = torch.rand(4, 3, 32, 32)
    bases = {
        name: create(name, 2, BackboneConfig(weights="random"), (32, 32)).freeze() for name in NAMES
    }
    model = bases["test_resnet"].model
    original = model.forward_features
    monkeypatch.setattr(model, "forward_features", lambda x: original(x) + 0)
    cpu = torch.device("cpu")
    peers, notes = find_peers({name: (base, images) for name, base in bases.items()}, cpu, limit=60)
    assert set(peers) == {"test_efficientnet"}
    assert notes == ["grad-cam was left out for test_resnet: no module's output is its last grid"]
    some = [cost_of(BATCHED, "test_efficientnet", 4, [1.0])]
    assert sums(some, NAMES) == []


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("test_resnet", "layer4", 32),
        ("test_efficientnet", "bn2", 32),
        ("densenet121", "features", 32),
        ("test_vit", "blocks.5.norm1", 160),
    ],
)
def test_the_package_looks_at_the_layer_that_is_cached(name: str, layer: str, size: int) -> None:
    """Its activations, put into a grid, are the backbone's."""
    base = create(name, 2, BackboneConfig(weights="random"), (size, size)).freeze()
    images = torch.rand(2, 3, size, size)
    assert peer_layer(base, images[:1]) == layer
    cam = package_cam(base, layer, images, "contiguous")
    assert isinstance(cam, GradCAM)
    assert cam(images, None).shape == (2, size, size)
    with torch.no_grad():
        expected = base.trunk(images).grid_BChw
    torch.testing.assert_close(cam.activations_and_grads.activations[0], expected, rtol=1e-3, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_ratios_and_sums_are_arithmetic() -> None:
    """Medians of the repeats, sums repeat by repeat, shares of the bare pass, multiples of our time."""
    costs = [
        cost_of(OURS, "a", 8, [2.0, 9.0, 3.0]),
        cost_of(BARE, "a", 8, [2.5, 2.5, 2.5]),
        cost_of(BATCHED, "a", 4, [30.0, 27.0, 33.0]),
        cost_of(LOOP, "a", 2, [60.0, 60.0, 60.0]),
        cost_of(OURS, "b", 8, [4.0, 4.0, 4.0]),
        cost_of(BARE, "b", 8, [4.0, 4.0, 4.0]),
        cost_of(BATCHED, "b", 8, [10.0, 11.0, 12.0]),
        cost_of(OURS, TOGETHER, 8, [6.0, 6.0, 6.0]),
        cost_of(BARE, TOGETHER, 8, [5.0, 5.0, 5.0]),
    ]
    (batched,) = sums(costs, ["a", "b"])  # b has no loop
    assert (batched.milliseconds, batched.repeats) == (40.0, (40.0, 38.0, 45.0))
    assert batched.images == 4
    first, second, both = (ratios_of([*costs, batched], of) for of in ("a", "b", TOGETHER))
    assert (first.of, first.bare.value, first.bare.low, first.bare.high) == ("a", 1.2, 0.8, 3.6)
    assert [r and r.value for r in (first.batched, first.loop)] == [10.0, 20.0]
    assert [r and r.value for r in (second.bare, second.batched, second.loop)] == [1.0, 2.75, None]
    said = (
        "all together: 1.20x the time of a bare forward pass (rough); grad-cam, batched, takes "
        "6.67x (6.33-7.5) as long as stage two (rough)"
    )
    assert verdict(both) == said


def test_what_takes_too_long_is_left_out(make_config: Callable[..., Config]) -> None:
    """With next to no time, the least is measured of the first base model, and the rest is named."""
    bench = bench_cache(make_config(precision="bf16"), minutes=1e-4)
    assert (bench["images"], bench["repeats"]) == (8, 1)
    assert [ratios.of for ratios in bench["ratios"]] == [NAMES[0]]
    assert bench["deviations"] is None
    assert bench["subjects"][1]["bytes_per_image"] is None
    assert bench["notes"] == [
        *(f"grad-cam was skipped for {name}: not enough time (--minutes)" for name in NAMES),
        *(f"{of} was skipped: not enough time" for of in (NAMES[1], TOGETHER)),
        "bfloat16 was not compared with float32: not enough time",
    ]


def test_the_bare_pass_sees_the_images_that_it_is_divided_by(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More were read than there was time for: a few warm it up, then those of the plan."""
    seen: list[int] = []

    def watched(*args: Any) -> Backbone:
        backbone = create(*args)
        backbone.model.register_forward_hook(lambda _, images, __: seen.append(len(images[0])))
        return backbone

    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    monkeypatch.setattr(work, "create", watched)
    bench = bench_cache(make_config(precision="fp32"), minutes=1e-4)
    assert bench["images"] == 8
    assert set(seen) == {4, 8}


def test_sizes_of_batches_are_tried_while_there_is_time() -> None:
    """The loop is always measured; what was not tried is named."""
    base = create("test_resnet", 2, BackboneConfig(weights="random"), (32, 32)).freeze()
    peers, notes = find_peers({"a": (base, torch.rand(4, 3, 32, 32))}, torch.device("cpu"), limit=1e-3)
    assert peers["a"].batch_size == 1
    assert peers["a"].seconds == peers["a"].loop_seconds > 0
    assert notes == ["grad-cam on a: batches of 4 were not tried: not enough time"]


def test_deviations_are_arithmetic() -> None:
    """Logits as they are, the others as shares of the largest exact value."""
    exact = {
        "logits": np.array([[1.0, 2.0], [0.0, -1.0]]),
        "features": np.array([[4.0, 0.0], [0.0, 0.0]]),
        "maps": np.zeros((2, 1, 1, 1)),
    }
    rounded = {**exact, "logits": np.array([[2.5, 2.0], [0.0, -1.0]])}
    rounded["features"] = np.array([[3.0, 0.0], [0.0, 0.0]])
    assert deviation("a", rounded, exact) == {
        "backbone": "a",
        "images": 2,
        "logits": {"maximum": 1.5, "mean": 0.375},
        "embeddings": {"maximum": 0.25, "mean": 0.0625},
        "maps": {"maps": {"maximum": 0, "mean": 0}},
        "changed_predictions": 1,
    }
