"""Turn trained weights into a folder that the package carries and that open_clip loads too.

    PYTHONPATH=src python training/bundle.py tiny-rn --data DATA --runs RUNS --out src/d4c/models/bundled

Writes OUT/MODEL: open_clip_config.json, open_clip_model.safetensors (fp16), a model card, and prompts.json, the model's
own bank: the classes it was trained on, less those that its text tower can hardly tell from an earlier one. Token rows
that nothing shipped or evaluated uses become zero, so that the repository can compress them: they were never trained.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save

from d4c.artifact.architecture import ClipConfig, VisionTransformerConfig
from d4c.artifact.open_clip_names import open_clip_model_cfg, to_open_clip
from d4c.inputs import Preprocess, Tokenizer
from d4c.models.clip import Clip, clip_from_state
from d4c.prompts import calibration_texts, load_prompts, load_templates
from data import MEAN, STD, load_classes

TEMPLATE = "a photo of a {c}."
ALIKE = 0.98  # the shipped bank promises at most 0.99 after everything is rounded to fp16
MOST_BYTES = 30_000_000
CARD = """---
license: other
pipeline_tag: zero-shot-image-classification
tags: [clip]
---

# {name}

A small CLIP that d4c carries so that it can be tried, tested and measured without a download: {tower}, images of
{size} pixels, {parameters:.1f} million parameters. It knows the 200 classes of Tiny ImageNet and little else.

Trained by d4c's `training/` on 46,000 images of Tiny ImageNet (Stanford CS231n, from ILSVRC-2012, whose terms are
non-commercial research and education), captions made of class names and templates, and the soft labels of
EfficientNet-Lite0 (Apache-2.0). Rows of the token table that no shipped or evaluated text uses are zero.
"""


def kept_texts(data: Path) -> list[str]:
    """Everything whose tokens must keep their rows: captions, shipped banks and the evaluation sets."""
    classes = load_classes(data)
    texts = [name for c in classes for name in (c["name"], *c["synonyms"])]
    for bank in (load_prompts("own"), load_prompts("paper")):
        texts += [*bank.prompts, *calibration_texts(bank, load_templates("generic"), 10**9, 0)]
    for name in ("wds_tiny-imagenet", "wds_cifar10"):
        for file in ("classnames.txt", "zeroshot_classification_templates.txt"):
            texts += (data / name / file).read_text(encoding="utf-8").replace("{c}", "").splitlines()
    with tarfile.open(data / "wds_flickr8k-200" / "test" / "0.tar") as shard:
        for member in shard:
            if member.name.endswith(".txt"):
                file_object = shard.extractfile(member)
                assert file_object is not None
                texts += file_object.read().decode("utf-8").splitlines()
    return texts


def distinct_names(clip: Clip, names: list[str]) -> list[str]:
    """Names in order, without those whose prompt lies within `ALIKE` of an earlier one's."""
    ids = torch.from_numpy(clip.tokenizer([TEMPLATE.replace("{c}", name) for name in names]))
    cosine = F.normalize(clip.encode_text(ids), dim=-1) @ F.normalize(clip.encode_text(ids), dim=-1).T
    kept: list[int] = []
    for i in range(len(names)):
        if not kept or cosine[i, kept].max() < ALIKE:
            kept.append(i)
    return [names[i] for i in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    trained = torch.load(args.runs / args.model / "weights.pt")
    config = ClipConfig.from_dict(trained["config"])
    state = {k: v.float() for k, v in trained["state"].items() if not k.endswith("num_batches_tracked")}
    tokenizer = Tokenizer.openai(config.text.context_length)
    used = np.unique(np.concatenate([tokenizer([text])[0] for text in kept_texts(args.data)]))
    rows = state["text.token_embedding.weight"]
    state["text.token_embedding.weight"] = torch.zeros_like(rows).index_copy(
        0, torch.from_numpy(used), rows[torch.from_numpy(used)]
    )
    half = {k: v.half() for k, v in state.items()}
    clip = clip_from_state(
        config, half, tokenizer=tokenizer, preprocess=Preprocess(config.image.image_size), source=args.model
    )
    names = distinct_names(clip, [c["name"] for c in load_classes(args.data)])

    folder = args.out / args.model
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(to_open_clip(config, {k: v.numpy() for k, v in half.items()}))
    assert len(weights) < MOST_BYTES, f"{len(weights)} bytes"
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    settings = {"model_cfg": open_clip_model_cfg(config), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "prompts.json").write_text(json.dumps({"classnames": names, "templates": [TEMPLATE]}, indent=1) + "\n")
    tower = "a ViT" if isinstance(config.image, VisionTransformerConfig) else "a ModifiedResNet"
    parameters = sum(v.numel() for v in half.values()) / 1e6
    card = CARD.format(name=args.model, tower=tower, size=config.image.image_size, parameters=parameters)
    (folder / "README.md").write_text(card)
    print(f"{folder}: {len(weights) / 1e6:.1f} MB, {len(used)} token rows, {len(names)} prompts")


if __name__ == "__main__":
    main()
