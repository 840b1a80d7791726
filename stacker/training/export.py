"""A base model for use outside of this program: a plain timm checkpoint, or ONNX.

What is written is tried before it gets its name: it is loaded from the file alone, as a stranger would
load it, and its logits are compared with the base model's on random images. Of the training cases an
export holds their number and a digest, not their names.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stacker import __version__
from stacker.backbones.backbone import Backbone
from stacker.backbones.checkpoint import load_checkpoint
from stacker.backbones.weights import model_settings
from stacker.backbones.zoo import timm
from stacker.data.folds import fold_name
from stacker.errors import BackboneError, ConfigError, install_extra, require_one_of
from stacker.files import digest, file_sha256, publish, write_json
from stacker.run import Run

Form = Literal["timm", "onnx"]
Facts = dict[str, Any]
Ask = Callable[[Tensor], Tensor]  # from images_BCHW to logits_BK
SUFFIXES: dict[Form, str] = {"timm": ".pth", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of the largest logit, or of one where all are smaller
OPSET = 18  # what torch translates to first; other opsets are converted from it
LARGEST_ONNX = 2**31 - 2**24  # a protobuf ends at 2 GiB; some room for the graph


@dataclass(frozen=True)
class Exported:
    """An exported base model; `deviation` is the largest one of its logits from the original's."""

    path: Path
    form: Form
    backbone: str
    fold: str
    classes: list[str]
    size: tuple[int, int]
    bytes: int
    deviation: float


def export(
    run: Run, backbone: str | None, fold: str | None, form: Form, out: Path | None = None
) -> Exported:
    """Write one base model of a run as ONNX, or for timm with a JSON beside it that says what it is.

    Backbone and fold may be left out where the run has one. Raise BackboneError, and write nothing,
    where the base model is not trained yet or the export does not answer as it does.
    """
    backbone = _choose(run, "backbone", backbone, list(run.config.backbones))
    folds = [known.name for known in run.folds.folds]
    fold = _choose(run, "fold", fold and fold_name(fold), folds)
    path = out or run.path / "export" / f"{backbone}-{fold}{SUFFIXES[form]}"
    if path.suffix != SUFFIXES[form]:
        raise ConfigError(f"--out: {path} must end in {SUFFIXES[form]} (--to {form})")
    source = run.model_file(backbone, fold)
    if not source.exists():
        raise BackboneError(f"{source}: this base model is not trained yet; run 'stacker train CONFIG'")
    base, facts = load_checkpoint(source)
    about = _about(base.freeze(), facts)
    write = {"timm": _write_timm, "onnx": _write_onnx}[form]
    with publish(path) as temporary:
        deviation = _compare(path, base, write(temporary, base, about))
    if form == "timm":
        file = {"file": path.name, "sha256": file_sha256(path), "load": _load_line(path, base, about)}
        write_json(path.with_suffix(".json"), file | about)
    size, classes = path.stat().st_size, about["classes"]
    return Exported(path, form, backbone, fold, classes, base.size, size, deviation)


def _choose(run: Run, kind: str, name: str | None, known: Sequence[str]) -> str:
    """Return the name of a backbone or fold; raise ConfigError for an unknown one or an open choice."""
    if name is None and len(known) > 1:
        names = ", ".join(known)
        raise ConfigError(f"{run.path} has {len(known)} {kind}s; choose one with --{kind}: {names}")
    chosen = known[0] if name is None else name
    require_one_of(f"{kind} of this run", [chosen], known)
    return chosen


def _about(base: Backbone, facts: Facts) -> Facts:
    """Return what a stranger needs to know to feed the model and to read its answer."""
    about = {"backbone": base.name, "classes": facts["classes"], "size": base.size}
    about |= {"mean": base.mean, "std": base.std}
    about["input"] = "RGB (N, 3, height, width): pixels / 255, less the mean, divided by the std"
    about["output"] = "logits in the order of the classes"
    resize = facts.get("config", {}).get("images", {}).get("resize")
    if resize is not None:
        about["resize"] = f"{resize}, bicubic"
    known = ("fold", "group", "manifest_digest", "folds_digest", "identity", "versions")
    about |= {key: facts[key] for key in known if key in facts}
    about |= {"training_cases": len(facts["training_cases"]), "exported_by": f"stacker {__version__}"}
    return about | {"training_cases_digest": digest(facts["training_cases"])}


def _settings(base: Backbone, about: Facts) -> Facts:
    return {"num_classes": len(about["classes"]), **model_settings(base.name, base.size)}


def _write_timm(path: Path, base: Backbone, about: Facts) -> Ask:
    """Write a state dict, nothing else; return the model that timm makes of it."""
    tensors = base.model.state_dict()
    state = {key: tensors[key].clone(memory_format=torch.contiguous_format) for key in tensors}
    with path.open("wb") as file:  # given a name, torch would write it into the file
        torch.save(state, file)
    model = timm.create_model(base.name, checkpoint_path=str(path), **_settings(base, about))
    ask: Ask = model.eval().requires_grad_(False)
    return ask


def _load_line(path: Path, base: Backbone, about: Facts) -> str:
    """Return the line of Python that loads the file; AlexNet is one that stacker adds to timm."""
    home = type(base.model).__module__
    modules = f"timm, {home}" if home.startswith("stacker.") else "timm"
    settings = {**_settings(base, about), "checkpoint_path": path.name}
    given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return f"import {modules}; model = timm.create_model({base.name!r}, {given}).eval()"


def _write_onnx(path: Path, base: Backbone, about: Facts) -> Ask:
    """Write the model's graph with what is known of it; return it as onnxruntime runs it."""
    try:
        _, _, runtime = (import_module(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    except ImportError as error:
        raise ConfigError(f"--to onnx: {error}", install_extra("export")) from None
    size = sum(tensor.nbytes for tensor in base.model.state_dict().values())
    if size > LARGEST_ONNX:
        raise BackboneError(
            f"{base.name}: {size / 1e9:.1f} GB, more than the 2.1 GB of an ONNX file; use --to timm"
        )
    proto = _trace(base)
    for key, value in about.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _trace(base: Backbone) -> Any:
    """Return the model as an ONNX ModelProto, free of the exporter's notes on this machine's files."""
    images = torch.zeros(2, 3, *base.size)  # of a batch of one, torch would make a constant
    how: Facts = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    how |= {"input_names": ["images"], "output_names": ["logits"]}
    how |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    heard, before = io.StringIO(), logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(action="ignore"), redirect_stdout(heard), redirect_stderr(heard):
            program: Any = torch.onnx.export(base.model, (images,), **how)
            proto = program.model_proto
    except Exception as error:  # the exporter and what it calls raise several unrelated families
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise BackboneError(
            f"{base.name}: torch {torch.__version__} cannot export it: {type(cause).__name__}: {cause}\n"
            "Try newer versions (pip install -U torch onnx onnxscript), or use --to timm"
        ) from error
    finally:
        logging.disable(before)
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
    return proto


def _compare(path: Path, base: Backbone, ask: Ask) -> float:
    """Return the largest deviation of the logits; raise BackboneError where it is no rounding."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for count in (1, 3):
        pixels = torch.randint(256, (count, *base.size, 3), dtype=torch.uint8, generator=generator)
        images_BCHW = base.normalise(pixels).contiguous()
        with torch.no_grad():
            expected, logits = base.model(images_BCHW), ask(images_BCHW)
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        deviation = float((logits - expected).abs().max())
        if logits.shape != expected.shape or not deviation <= allowed:  # nan is no rounding either
            raise BackboneError(
                f"{path}: not written: its logits differ from the base model's by {deviation:.2g}, "
                f"more than the allowed {allowed:.2g}; try other versions of torch and timm, or the "
                "other --to"
            )
        worst = max(worst, deviation)
    return worst
