"""Stage two: one base model over images, giving logits, embeddings and the maps of every class.

One trunk pass per batch serves all three. The trunk runs in bfloat16 where the hardware multiplies it
natively, the head and its gradients always in float32. Batches start afresh at every part, so what a
part holds does not depend on which parts were there before: a resumed cache equals an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from stacker.backbone import Backbone
from stacker.cache import (
    Provenance,
    Rows,
    open_cache,
    part_file,
    part_is_done,
    write_index,
    write_part,
)
from stacker.cam import class_maps
from stacker.config import CamConfig
from stacker.devices import autocast
from stacker.errors import CacheError
from stacker.pixels import Pixels
from stacker.run import sweep

Arrays = dict[str, np.ndarray]


def extract(
    backbone: Backbone,
    pixels: Iterable[np.ndarray],
    method: str,
    device: torch.device,
    precision: torch.dtype,
) -> Arrays:
    """Return maps (N, K, h, w), features (N, D) and logits (N, K) for batches of uint8 pixels."""
    batches = []
    for pixels_BHWC in pixels:
        images_BCHW = backbone.normalise(torch.from_numpy(pixels_BHWC).to(device))
        with torch.no_grad(), autocast(device, precision):
            features = backbone.trunk(images_BCHW)
        embedding_BD, logits_BK, maps_BKhw = class_maps(backbone.head, features, method)
        batches.append((maps_BKhw.cpu(), embedding_BD.cpu(), logits_BK.cpu()))
    maps, embeddings, logits = (torch.cat(pieces).numpy() for pieces in zip(*batches, strict=True))
    return {"maps": maps, "features": embeddings, "logits": logits}


def fill_cache(
    folder: Path,
    backbone: Backbone,
    pixels: Pixels,
    store_rows: np.ndarray,
    rows: Rows,
    provenance: Provenance,
    settings: CamConfig,
    device: torch.device,
    precision: torch.dtype,
    on_part: Callable[[int], None],
) -> int:
    """Write the parts that are missing or of another origin, then the index; return how many.

    `store_rows` are the positions of `rows` in the store; `on_part` hears the size of every part.
    """
    sweep(folder)
    (folder / "index.h5").unlink(missing_ok=True)  # it must never speak of other parts
    backbone.freeze().model.to(device)
    parts, written = [], 0
    for number, start in enumerate(range(0, len(rows), settings.part_rows)):
        chosen = slice(start, start + settings.part_rows)
        part = part_file(folder, number)
        parts.append(part)
        if not part_is_done(part, rows.take(chosen), provenance):
            wanted = store_rows[chosen]
            batches = (
                pixels[wanted[i : i + settings.batch_size]]
                for i in range(0, len(wanted), settings.batch_size)
            )
            arrays = extract(backbone, batches, settings.method, device, precision)
            write_part(part, arrays, rows.take(chosen), provenance)
            written += 1
        on_part(len(rows.take(chosen)))
    for stale in set(folder.glob("part-*.h5")) - set(parts):
        stale.unlink()
    write_index(folder, parts)
    return written


def cache_is_done(folder: Path, rows: Rows, provenance: Provenance, settings: CamConfig) -> bool:
    """Say whether the index and every part are there, of this origin, and readable to the end."""
    try:
        cache = open_cache(folder)
    except CacheError:
        return False
    starts = range(0, len(rows), settings.part_rows)
    return (
        cache.provenance == provenance
        and np.array_equal(cache.rows.image_id, rows.image_id)
        and all(
            part_is_done(part_file(folder, n), rows.take(slice(i, i + settings.part_rows)), provenance)
            for n, i in enumerate(starts)
        )
    )
