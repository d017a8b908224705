"""A full-size model with random weights, for what does not depend on them: speed, size, memory.

    python benchmarks/random_weights.py ViT-B-32-quickgelu FOLDER
    d4c quantize local-dir:FOLDER --recipe w8a8 --out A --keep-images --set synthesize.images=8 \
        --set synthesize.steps=2 --set reconstruct.method=none --set calibrate.texts=16
    d4c bench A

The folder is in open_clip's layout; names are those of `d4c models`. Every parameter is drawn anew, scaled so that
signals keep their size, since open_clip starts ResNets with residual branches of zeros.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from d4c.models.torchvision_schemas import declare_torchvision_schemas

declare_torchvision_schemas()
import open_clip  # noqa: E402


def draw(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator)
    if name in ("logit_scale", "logit_bias"):
        return like
    if name.endswith("running_var"):
        return 0.5 + drawn.abs()
    if name.endswith("bn3.weight"):
        return 0.3 + 0.1 * drawn  # or the residual sums would grow from block to block
    if like.ndim < 2:
        return 0.3 * drawn + (1.0 if name.endswith("weight") else 0.0)
    if "embedding" in name:
        return 0.5 * drawn
    fan_in = like.shape[0] if name.endswith("proj") else like[0].numel()
    return drawn * ((2.0 if like.ndim == 4 else 1.0) / fan_in) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights are random
        model = open_clip.create_model(args.name, pretrained=None)
    generator = torch.Generator().manual_seed(args.seed)
    state = {
        name: draw(name, tensor, generator) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    args.folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": open_clip.get_model_config(args.name)}
    (args.folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    save_file({name: t.contiguous() for name, t in state.items()}, args.folder / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
