"""Whatever stands in a part where something else belongs, it is damage and no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest

from stacker.caches.format import part_file
from stacker.caches.reader import open_cache
from stacker.errors import CacheError
from tests.caches.test_reader import ORIGIN, folder, part_is_done, some_rows

__all__ = ["folder"]  # a fixture


def replace_by_group(file: h5py.File) -> None:
    """Put a group in place of a dataset."""
    del file["logits"]
    file.create_group("logits")


@pytest.mark.parametrize(
    "damage",
    [
        replace_by_group,
        lambda file: file.attrs.__setitem__("classes", 5),
        lambda file: file.attrs.__setitem__("lower", [1, 2]),
        lambda file: file.attrs.__setitem__("checkpoint_sha256", h5py.Empty("f8")),
        lambda file: file.attrs.__delitem__("digest"),
        lambda file: file["maps"].attrs.__delitem__("sha256"),
        lambda file: file.__delitem__("image_id"),
    ],
    ids=["group", "classes", "lower", "empty", "digest", "sha256", "dataset"],
)
def test_parts_of_another_build_are_damaged_not_a_traceback(folder: Path, damage: Any) -> None:
    """Whatever stands where something else belongs, the file is named and can be made anew."""
    with h5py.File(part_file(folder, 0), "a") as file:
        damage(file)
    assert not part_is_done(part_file(folder, 0), some_rows(7), ORIGIN)
    with pytest.raises(CacheError, match=r"part-00000\.h5"):
        open_cache(folder).read("logits")
