"""Train a bundled CLIP on Tiny ImageNet; the same command resumes it.

    PYTHONPATH=src python training/train.py tiny-rn --data DATA --runs RUNS [--device cuda] [--bf16]

Needs torch, numpy, pyarrow and Pillow, and two files written beforehand: RUNS/teacher.npz (`teacher.py`) and
RUNS/captions.npz (`captions.py`). Three stages, because training both towers from the start is slow while the text
features of all classes are still nearly equal:

1. image: the image tower against a table of one learned vector a class, with hard labels and a teacher's soft ones;
   the text tower's projection makes the table, so that the text tower can reach it;
2. text: the text tower onto that table, captions only;
3. joint: both towers against each other at a low learning rate.

RUNS/MODEL/checkpoint.pt is replaced every two minutes, log.jsonl gets a line every few epochs, and weights.pt (the
averaged towers, for `bundle.py`) is written when the last stage ends, and at every validation of stage 3.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from d4c.artifact.architecture import ClipConfig, ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.models.resnet import ModifiedResNet
from d4c.models.text import TextTransformer
from d4c.models.vit import VisionTransformer
from data import MEAN, SETTINGS, STD, TRAIN, load_rows

TEXT = TextConfig(
    context_length=77, vocab_size=49408, width=128, layers=6, heads=4, mlp_width=512, activation="quick_gelu"
)


@dataclass(frozen=True)
class Plan:
    """What to train and for how long; epochs count passes over the training images."""

    clip: ClipConfig
    image_epochs: int
    full_epochs: int  # of these, the last ones that see every patch token (ViT only)
    kept_tokens: float  # fraction of patch tokens seen before that
    learning_rate: float
    weight_decay: float
    hard_weight: float  # weight of the true label; the teacher's soft labels have the rest
    text_steps: int
    joint_epochs: int


PLANS = {
    "tiny": Plan(
        ClipConfig(256, VisionTransformerConfig(64, 8, 128, 12, 4, 512, "quick_gelu"), TEXT),
        image_epochs=40, full_epochs=4, kept_tokens=0.35, learning_rate=1e-3, weight_decay=0.05,
        hard_weight=0.5, text_steps=1500, joint_epochs=2,
    ),
    "tiny-rn": Plan(
        ClipConfig(256, ResNetConfig(64, 16, (3, 4, 6, 3), 16), TEXT),
        image_epochs=60, full_epochs=60, kept_tokens=1.0, learning_rate=2e-3, weight_decay=0.05,
        hard_weight=0.5, text_steps=1500, joint_epochs=3,
    ),
}  # fmt: skip
BATCH = 128
EPOCHS_BETWEEN_VALIDATIONS = 3
FIRST_AREA, LAST_AREA = 0.35, 0.75  # least share of an image that a crop shows, when training begins and ends


class Towers(nn.Module):
    """Everything that learns: two towers, the class table that stands in for text at first, the temperature."""

    def __init__(self, config: ClipConfig, num_classes: int) -> None:
        super().__init__()
        if isinstance(config.image, ResNetConfig):
            self.image: nn.Module = ModifiedResNet(config.image, config.embed_dim)
        else:
            self.image = VisionTransformer(config.image, config.embed_dim)
            initialize_mimetic(self.image)
        self.text = TextTransformer(config.text, config.embed_dim)
        nn.init.normal_(self.text.token_embedding.weight, std=0.02)
        self.class_vectors = nn.Parameter(torch.randn(num_classes, config.text.width))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def table(self) -> Tensor:
        """The stand-in for text embeddings, [class, embedding]."""
        table: Tensor = self.text.projection(self.class_vectors)
        return table

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """[batch, channel] and [class, channel] -> scaled cosines [batch, class]."""
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        return scale * F.normalize(image_features.float(), dim=-1) @ F.normalize(class_features, dim=-1).T


def initialize_mimetic(vit: VisionTransformer) -> None:
    """Start attention as trained ViTs look: q kᵀ near the identity, v out near minus it (arXiv:2305.09828)."""
    width, heads = vit.config.width, vit.config.heads
    size = width // heads
    for block in vit.blocks:
        attention = block.attention
        target = 0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width)
        u, s, vh = torch.linalg.svd(target)
        attention.v.weight.data = s.sqrt()[:, None] * vh
        attention.out.weight.data = u * s.sqrt()
        for h in range(heads):
            u, s, vh = torch.linalg.svd(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width))
            rows = slice(h * size, (h + 1) * size)
            attention.q.weight.data[rows] = (u[:, :size] * s[:size].sqrt()).T
            attention.k.weight.data[rows] = s[:size].sqrt()[:, None] * vh[:size]
        for linear in (attention.q, attention.k, attention.v, attention.out):
            nn.init.zeros_(linear.bias)


def augment(pixels: Tensor, least_area: float, generator: torch.Generator) -> Tensor:
    """Random resized crop (area up to 1), mirror, brightness, contrast and saturation, each image its own draw."""
    n, device = len(pixels), pixels.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator).to(device)

    area, ratio = uniform(least_area, 1.0), torch.exp(uniform(-0.2, 0.2))
    half_w, half_h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = pixels.new_zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = half_w * mirror, uniform(-1, 1) * (1 - half_w)
    theta[:, 1, 1], theta[:, 1, 2] = half_h, uniform(-1, 1) * (1 - half_h)
    x = F.grid_sample(pixels, F.affine_grid(theta, list(pixels.shape), align_corners=False), align_corners=False)
    x = x * uniform(0.7, 1.3)[:, None, None, None]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * uniform(0.7, 1.3)[:, None, None, None]
    grey = x.mean(dim=1, keepdim=True)
    return grey + (x - grey) * uniform(0.7, 1.3)[:, None, None, None]


def encode_with_fewer_tokens(vit: VisionTransformer, pixels: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """The image embedding from a random part of the patch tokens, another part for each image."""
    x = vit.embed(pixels)  # [batch, token, channel]
    kept = round(keep * (x.shape[1] - 1))
    order = torch.rand(len(x), x.shape[1] - 1, generator=generator).argsort(dim=1)[:, :kept].to(x.device) + 1
    x = torch.cat([x[:, :1], x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))], dim=1)
    for block in vit.blocks:
        x = block(x)
    return vit.head(x, pixels)


def mixed_loss(logits: Tensor, labels: Tensor, teacher: Tensor, hard_weight: float) -> Tensor:
    """Cross-entropy with the true label and with the teacher's distribution, both [batch, class]."""
    hard = F.cross_entropy(logits, labels, label_smoothing=0.1)
    soft = -(teacher.exp() * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    return hard_weight * hard + (1 - hard_weight) * soft


class Trainer:
    """Owns what a checkpoint holds: towers, their running average, the stage, its optimizer and its step."""

    def __init__(self, name: str, data: Path, runs: Path, device: torch.device, bf16: bool) -> None:
        torch.manual_seed(0)
        self.plan, self.device, self.bf16, self.out = PLANS[name], device, bf16, runs / name
        self.out.mkdir(parents=True, exist_ok=True)
        self.images, labels = load_rows(data, TRAIN)
        self.labels = torch.from_numpy(labels)
        self.settings = load_rows(data, SETTINGS)
        self.teacher = torch.from_numpy(np.load(runs / "teacher.npz")["log_probabilities"][TRAIN])
        self.captions_file = runs / "captions.npz"
        self.towers = Towers(self.plan.clip, self.teacher.shape[1]).to(device)
        if name == "tiny-rn":
            self.towers.image.to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.towers, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
        self.stage, self.step, self.seconds, self.saved_at = "image", 0, 0.0, time.time()
        self.restored: dict[str, Any] = {}
        if (self.out / "checkpoint.pt").exists():
            state = torch.load(self.out / "checkpoint.pt", map_location=device)
            self.towers.load_state_dict(state["towers"])
            self.average.load_state_dict(state["average"])
            self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
            self.restored = state["optimizer"]

    def start_from(self, model: str) -> None:
        """Begin with a trained model's towers; each class's vector is what its text tower makes of the name."""
        from d4c.models import load  # needs more than a bare machine has
        from d4c.models.parts import captured_inputs

        clip = load(model)
        self.towers.image.load_state_dict(clip.image.state_dict())
        self.towers.text.load_state_dict(clip.text.state_dict())
        with torch.no_grad(), captured_inputs(self.towers, ["text.projection"]) as seen:
            self.towers.logit_scale.copy_(clip.logit_scale)
            self.class_features(self.towers)
            self.towers.class_vectors.copy_(seen["text.projection"][0])

    def run(self) -> None:
        """Do the stages that are not done yet."""
        while self.stage != "done":
            {"image": self.train_image, "text": self.train_text, "joint": self.train_joint}[self.stage]()
            self.stage = {"image": "text", "text": "joint", "joint": "done"}[self.stage]
            self.step, self.restored = 0, {}
            self.save({})
        self.write_weights()

    def save(self, optimizer: dict[str, Any]) -> None:
        """Replace the checkpoint in one rename."""
        self.seconds += time.time() - self.saved_at
        self.saved_at = time.time()
        state = {
            "towers": self.towers.state_dict(), "average": self.average.state_dict(), "optimizer": optimizer,
            "stage": self.stage, "step": self.step, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def write_weights(self) -> None:
        """The averaged towers under canonical names, for `bundle.py`."""
        state = {k: v.cpu().contiguous() for k, v in self.average.module.state_dict().items() if k != "class_vectors"}
        torch.save({"config": self.plan.clip.to_dict(), "state": state}, self.out / "weights.pt")

    def optimize(
        self, parameters: list[nn.Parameter], loss_at: Callable[[int], Tensor], *, steps: int, learning_rate: float,
        epoch: int, validate: Callable[[], dict[str, float]], average: bool,
    ) -> None:  # fmt: skip
        """AdamW with 5 % warm-up and a cosine to zero; validates, logs and continues where a checkpoint stopped."""
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.plan.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
        if self.restored:
            optimizer.load_state_dict(self.restored)
        loss_sum, since = 0.0, 0
        for step in range(self.step, steps):
            warm, progress = (step + 1) / (0.05 * steps), step / steps
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(warm, 0.5 * (1 + math.cos(math.pi * progress)))
            loss = loss_at(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if average:
                self.average.update_parameters(self.towers)
            loss_sum, since = loss_sum + loss.detach(), since + 1
            if (step + 1) % epoch == 0 or step + 1 == steps:
                line = {"stage": self.stage, "step": step + 1, "of": steps, "loss": float(loss_sum / since)}
                line |= {"minutes": round((self.seconds + time.time() - self.saved_at) / 60, 1), **validate()}
                print(line, flush=True)
                with (self.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                loss_sum, since = 0.0, 0
            if time.time() - self.saved_at > 120:
                self.step = step + 1
                self.save(optimizer.state_dict())

    def batch(self, step: int, progress: float) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        """Augmented pixels, labels and soft labels of one step; the same for the same step, whenever it runs.

        Crops grow with progress, towards the whole images of the evaluation.
        """
        per_epoch = len(self.images) // BATCH
        epoch, i = divmod(step, per_epoch)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(epoch))
        rows = order[i * BATCH : (i + 1) * BATCH]
        generator = torch.Generator().manual_seed(1_000_003 + step)
        least_area = FIRST_AREA + (LAST_AREA - FIRST_AREA) * progress
        pixels = augment(self.normalize(self.images[rows.numpy()]), least_area, generator)
        return pixels, self.labels[rows].to(self.device), self.teacher[rows].to(self.device).float(), generator

    def autocast(self) -> torch.autocast:
        """Towers run in bfloat16 where asked for; losses and weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def encode(self, tower: nn.Module, inputs: Tensor) -> Tensor:
        """float32 features [batch, channel] of one tower."""
        with self.autocast():
            features: Tensor = tower(inputs)
        return features.float()

    def normalize(self, images: np.ndarray) -> Tensor:
        """uint8 [batch, height, width, 3] -> normalised float [batch, 3, height, width]."""
        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]
        return x.contiguous(memory_format=torch.channels_last)

    def train_image(self) -> None:
        """Stage 1."""
        plan, per_epoch = self.plan, len(self.images) // BATCH

        def loss_at(step: int) -> Tensor:
            self.towers.train()
            pixels, labels, teacher, generator = self.batch(step, step / (plan.image_epochs * per_epoch))
            if isinstance(self.towers.image, VisionTransformer) and step < per_epoch * (
                plan.image_epochs - plan.full_epochs
            ):
                with self.autocast():
                    features = encode_with_fewer_tokens(self.towers.image, pixels, plan.kept_tokens, generator)
            else:
                features = self.encode(self.towers.image, pixels)
            logits = self.towers.logits(features, self.towers.table)
            return mixed_loss(logits, labels, teacher, plan.hard_weight)

        stand_in = [self.towers.class_vectors, self.towers.text.projection.weight]
        parameters = [*self.towers.image.parameters(), *stand_in, self.towers.logit_scale]
        self.optimize(
            parameters, loss_at, steps=plan.image_epochs * per_epoch, learning_rate=plan.learning_rate,
            epoch=EPOCHS_BETWEEN_VALIDATIONS * per_epoch, validate=lambda: self.validate(self.average.module.table),
            average=True,
        )  # fmt: skip
        self.towers.load_state_dict(self.average.module.state_dict())

    def train_text(self) -> None:
        """Stage 2: every caption's embedding onto its class's row of the table; no images."""
        captions = np.load(self.captions_file)
        ids, classes = torch.from_numpy(captions["ids"].astype(np.int64)), torch.from_numpy(captions["labels"])

        def loss_at(step: int) -> Tensor:
            self.towers.train()
            rows = torch.randint(len(ids), (256,), generator=torch.Generator().manual_seed(2_000_003 + step))
            features = self.encode(self.towers.text, ids[rows].to(self.device))
            table, label = self.towers.table.detach(), classes[rows].to(self.device)
            distance = 1 - F.cosine_similarity(features, table[label]).mean()
            return distance + 0.1 * F.cross_entropy(self.towers.logits(features, table), label)

        def validate() -> dict[str, float]:
            cosine = F.cosine_similarity(self.class_features(self.towers), self.towers.table).mean()
            return {"cosine_to_table": cosine.item(), **self.validate(self.class_features(self.towers), self.towers)}

        parameters = [p for name, p in self.towers.text.named_parameters() if name != "projection.weight"]
        self.optimize(
            parameters, loss_at, steps=self.plan.text_steps, learning_rate=1e-3, epoch=500, validate=validate,
            average=False,
        )  # fmt: skip
        self.average.module.load_state_dict(self.towers.state_dict())

    def train_joint(self) -> None:
        """Stage 3: images against one random caption of each class, both towers learning."""
        per_epoch = len(self.images) // BATCH
        captions = np.load(self.captions_file)
        ids, classes = torch.from_numpy(captions["ids"].astype(np.int64)), captions["labels"]
        rows_of = [torch.from_numpy(np.flatnonzero(classes == c)) for c in range(self.teacher.shape[1])]

        def loss_at(step: int) -> Tensor:
            self.towers.train()
            pixels, labels, teacher, generator = self.batch(10_000_000 + step, 1.0)
            rows = torch.stack([r[torch.randint(len(r), (), generator=generator)] for r in rows_of])
            text = self.encode(self.towers.text, ids[rows].to(self.device))
            logits = self.towers.logits(self.encode(self.towers.image, pixels), text)
            return mixed_loss(logits, labels, teacher, self.plan.hard_weight)

        def validate() -> dict[str, float]:
            figures = self.validate(self.class_features(self.average.module))
            self.write_weights()
            return figures

        parameters = [*self.towers.image.parameters(), *self.towers.text.parameters(), self.towers.logit_scale]
        self.optimize(
            parameters, loss_at, steps=self.plan.joint_epochs * per_epoch, learning_rate=0.1 * self.plan.learning_rate,
            epoch=per_epoch, validate=validate, average=True,
        )  # fmt: skip

    @torch.no_grad()
    def class_features(self, towers: Towers) -> Tensor:
        """Text embeddings of `a photo of a NAME.`, one a class in label order."""
        ids = np.load(self.captions_file)["names"].astype(np.int64)
        return towers.text.eval()(torch.from_numpy(ids).to(self.device))

    @torch.no_grad()
    def validate(self, class_features: Tensor, towers: Towers | None = None) -> dict[str, float]:
        """Top-1 on the settings rows in percent, by the averaged image tower unless another is given."""
        towers = towers or self.average.module
        if towers is self.average.module:  # statistics of averaged weights are not the average of statistics
            update_bn([self.normalize(self.images[i : i + 256]) for i in range(0, 4096, 256)], towers.image)
        towers.eval()
        images, labels = self.settings
        guesses = [
            towers.logits(towers.image(self.normalize(images[i : i + 256])), class_features).argmax(-1).cpu()
            for i in range(0, len(images), 256)
        ]
        return {"top1": 100 * float((torch.cat(guesses) == torch.from_numpy(labels)).float().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=PLANS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="three times faster where the processor computes in it")
    parser.add_argument("--start", metavar="MODEL", help="a trained model of the same shape, where RUNS holds none")
    args = parser.parse_args()
    trainer = Trainer(args.model, args.data, args.runs, torch.device(args.device), args.bf16)
    if args.start and trainer.stage == "image" and trainer.step == 0:
        trainer.start_from(args.start)
    trainer.run()


if __name__ == "__main__":
    main()
