"""timm and torchvision come without torch's compiler, and the compiler is whole when it is wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> None:
    """Run code in a process of its own, which must end well."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_are_imported_without_the_compiler() -> None:
    """Nor does building, cutting and asking a backbone load it."""
    run("""
import sys, torch
from stacker.backbones.backbone import create
from stacker.config.training import WeightsConfig
backbone = create("test_resnet", 2, WeightsConfig(weights="random"), (32, 32))
backbone.freeze().model(torch.zeros(1, 3, 32, 32))
assert not {"torch._dynamo", "torch._dynamo.utils", "sympy"} & set(sys.modules)
""")


def test_the_compiler_works_afterwards() -> None:
    """A model is compiled, RoI align asks the real function, and what is disabled can be called."""
    run("""
import torch
from stacker.backbones.zoo import timm
model, images = timm.create_model("test_resnet").eval(), torch.zeros(2, 3, 64, 64)
with torch.no_grad():
    assert torch.equal(torch.compile(model, backend="eager")(images), model(images))
from torchvision.ops import roi_align
assert roi_align(images, torch.tensor([[0.0, 0, 0, 8, 8]]), 2).shape == (1, 3, 2, 2)
import sys, torch._dynamo.utils
place = sys.modules["torchvision.ops.roi_align"]
assert place.is_compile_supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")
assert torch.compiler.disable.__module__ == "torch.compiler"
flexible = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=64, num_heads=2).eval()
assert flexible(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
""")


@pytest.mark.parametrize(
    "wanted",
    [
        "from torch._dynamo.utils import counters",
        "from torch._dynamo.utils import is_compile_supported as ask; ask('cpu')",
        "import torch._dynamo",
        "import torch._dynamo.config",
    ],
)
def test_whoever_wants_more_of_the_compiler_gets_it(wanted: str) -> None:
    """Other versions of the packages may import anything of it: then the stand-in has gone."""
    run(f"""
import sys, torch
from stacker.backbones import zoo
for name in [name for name in sys.modules if name.startswith("torch._dynamo")]:
    raise AssertionError(name)
with zoo.without_compiler():
    {wanted}
    assert "torch._dynamo" in sys.modules
assert sys.modules["torch._dynamo.utils"].counters is not None
assert sys.modules["torch._dynamo.utils"].__file__
""")


def test_the_stand_in_is_gone_after_a_failure() -> None:
    """An import that fails leaves nothing behind."""
    run("""
import sys, torch
from stacker.backbones.zoo import without_compiler
finders, disable = list(sys.meta_path), torch.compiler.disable
try:
    with without_compiler():
        assert torch.compiler.disable is not disable
        import stacker.nothing
except ImportError:
    pass
assert sys.meta_path == finders and torch.compiler.disable is disable
assert "torch._dynamo.utils" not in sys.modules
""")


def test_marks_that_are_not_known_are_left_alone() -> None:
    """A torch that marks functions otherwise has timm imported as ever, and nothing fails later."""
    run("""
import sys, torch
known = torch._disable_dynamo
torch._disable_dynamo = lambda fn=None, *, recursive=True: known(fn, recursive)
from stacker.backbones.zoo import timm
assert "torch._dynamo" in sys.modules
model = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=64, num_heads=2).eval()
assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
""")


def test_what_fails_without_the_compiler_is_imported_with_it() -> None:
    """Whatever the failure is, a plain import follows, which raises what is really wrong."""
    run("""
import sys, torch
class Breaks:
    def find_spec(self, name, *_):
        if name == "torchvision.ops" and "torch._dynamo.utils" in sys.modules:
            sys.meta_path.remove(self)
            raise RuntimeError(name)
breaks = Breaks()
sys.meta_path.insert(0, breaks)
from stacker.backbones.zoo import timm
assert breaks not in sys.meta_path
assert "torch._dynamo" in sys.modules
assert timm.create_model("test_resnet").eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
""")
