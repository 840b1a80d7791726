"""The section `cam`: which maps stage two makes, of which layers, and how they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from stacker.config.section import Names, Section

MethodName = Literal[
    "gradcam",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "layercam",
    "gradcamelementwise",
    "shapleycam",
    "eigencam",
    "eigengradcam",
    "segeigencam",
    "fem",
    "kpcacam",
    "scorecam",
    "ablationcam",
]
PERTURBING = ("scorecam", "ablationcam")  # a pass per channel: they cost what they cost


class CamConfig(Section):
    """What stage two caches, and in what portions.

    The maps of the first method at the last grid are `maps`; others have their method and level behind
    them, as in `maps_layercam` or `maps_lower1`. `lower` takes maps of so many stages below the last
    grid, too. `memory_gb` bounds the base models that are held at once, fed by one read of an image.
    """

    methods: Names[MethodName] = Field(["gradcam"], min_length=1)
    lower: int = Field(0, ge=0, le=4)
    batch_size: int = Field(32, ge=1)
    part_rows: int = Field(1024, ge=1)
    memory_gb: float = Field(4.0, gt=0)

    @property
    def maps(self) -> dict[str, tuple[str, int]]:
        """The datasets of maps: their names, with the method and the level (0: the last grid)."""
        return name_maps(self.methods, self.lower)


def name_maps(methods: Sequence[str], lower: int) -> dict[str, tuple[str, int]]:
    """Return the names of all maps, with the method and the level below the last grid."""
    return {
        "maps" + (f"_{method}" if number else "") + (f"_lower{level}" if level else ""): (method, level)
        for number, method in enumerate(methods)
        for level in range(1 if method in PERTURBING else lower + 1)
    }
