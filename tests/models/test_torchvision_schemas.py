import os
import subprocess
import sys

import pytest
import torch

DECLARE = "from d4c.models.torchvision_schemas import declare_torchvision_schemas as declare"
# What torchvision does when it is first imported; without a schema it fails.
REGISTER = """
def register():
    for name in ("nms", "qnms"):
        torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: dets)
"""


def output_of(*lines: str) -> str:
    """What the lines print in a fresh interpreter, where every warning is an error."""
    code = "\n".join(["import sys, torch, warnings", "warnings.simplefilter('error')", *lines])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA torch needs no schemas")
def test_the_schemas_that_torchvision_asks_for_are_there_only_after_it() -> None:
    before = ["try: register()", "except RuntimeError as error: print('does not exist' in str(error))"]
    after = [DECLARE, "declare()", "register()", "print(torch.ops.torchvision.nms.default._schema)"]
    schema = "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert output_of(REGISTER, *before, *after) == f"True\n{schema}\n"


def test_open_clip_is_left_alone_until_it_is_needed_and_then_can_be_imported() -> None:
    lines = [
        "import d4c.models",
        "from d4c.models.names import registered_names, registered_tags",
        "print('ViT-B-32' in registered_names(), {'open_clip', 'torchvision'} & set(sys.modules))",
        "print(registered_tags('RN50'))",
        DECLARE,
        "declare()",  # once more, and once more after torchvision is there
        "import open_clip, torchvision",
        "declare()",
        "print(open_clip.get_model_config('RN50')['embed_dim'])",
    ]
    assert output_of(*lines) == "True set()\n['openai', 'yfcc15m', 'cc12m']\n1024\n"
