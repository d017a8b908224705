"""The loss of a slice of the images at a step: views, one pass through the model, and the objectives' weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d4c.artifact.architecture import VisionTransformerConfig
from d4c.errors import RecipeError
from d4c.memory import total_memory
from d4c.models import Clip
from d4c.models.parts import captured_inputs
from d4c.models.resolution import at_size
from d4c.models.vit import VisionTransformer
from d4c.recipes import Synthesize
from d4c.recipes.seeds import derive_seed
from d4c.synthesize.objectives import (
    attended_inputs,
    attended_values,
    batchnorm_statistics,
    patch_similarity_entropy,
    semantic_injection,
    structural_contrast,
    total_variation,
    variation_norms,
)
from d4c.synthesize.views import background, enlarge_boxes, normal_like, perturb, roll_and_mirror

COARSE_UNTIL, DROPPED_UNTIL, COARSE_SIDE, RESNET_STRIDE = 0.4, 0.8, 4, 32  # shares of the steps; patches; pixels
MOST_KEPT, SHARE_KEPT = 6e9, 0.25  # bytes of activations for gradients, and of all memory; above, computed again
FINAL_NOISE = 0.2  # of the noise at the start
MIN_TARGET, MAX_TARGET, TARGET_VALUES = 2500.0, 3000.0, 32 * 3 * 224 * 224  # PSAQ-ViT's, for its batch at its size


def check_objectives(clip: Clip, config: Synthesize) -> None:
    """Raise `RecipeError` where an objective needs what the image tower does not have."""
    name = f"{clip.source}'s image tower"
    if config.batchnorm_statistics and not _batchnorms(clip):
        raise RecipeError(f"synthesize.batchnorm_statistics needs BatchNorms, {name} has none; patch_similarity has it")
    if config.patch_similarity and not isinstance(clip.image, VisionTransformer):
        raise RecipeError(f"synthesize.patch_similarity needs a ViT, {name} is none; batchnorm_statistics suits it")


class SynthesisLoss:
    """The loss of any slice of the images at any step; its randomness depends on nothing else.

    Args:
        targets: prompt of each image, [image]; boxes: foreground of each image, [image, 4].

    Raises:
        RecipeError: an objective needs what the model does not have.
    """

    def __init__(
        self, clip: Clip, prompts: Sequence[str], targets: Tensor, boxes: Tensor, config: Synthesize, seed: int
    ) -> None:
        check_objectives(clip, config)
        device = clip.logit_scale.device
        self.clip, self.config, self.seed = clip, config, seed
        self.targets, self.boxes = targets.to(device), boxes.to(device)
        self.norms = _batchnorms(clip) if config.batchnorm_statistics else {}
        self.attentions = _attentions(clip) if config.patch_similarity else []
        self.coarse = _coarse_tower(clip) if config.coarse_to_fine else None
        views = (1 + config.structural_contrast) * min(config.batch, config.images)
        self.recompute = views * bytes_kept(clip) > min(MOST_KEPT, SHARE_KEPT * total_memory(device))
        with torch.no_grad():
            ids = torch.from_numpy(clip.tokenizer(list(prompts))).to(device)
            self.texts = torch.cat([clip.encode_text(part, normalize=True) for part in ids.split(256)])

    def __call__(self, x: Tensor, rows: slice, step: int) -> Tensor:
        """Loss of the pixels x [image, 3, size, size], which are the images `rows` of the set."""
        config, boxes = self.config, self.boxes[rows]
        draw = torch.Generator().manual_seed(derive_seed(self.seed, "synthesize", rows.start, step))
        view = self._jittered(x, step, draw)
        smooth = view
        if config.structural_contrast:
            view = enlarge_boxes(view, boxes)
        if config.perturbation:
            view = perturb(view, draw)
            # on what the model sees, as the authors have it without structural contrast
            smooth = smooth if config.structural_contrast else view
        images = torch.cat([view, background(x, boxes, draw)]) if config.structural_contrast else view
        watched = [*self.norms, *(site for sites in self.attentions for site in sites)]
        with captured_inputs(self.clip, watched, with_graph=True) as seen:
            features = F.normalize(self._encode(self._noisy(images, step, draw), step, draw), dim=-1)
        inside = {name: calls[0][: len(view)] for name, calls in seen.items()}  # of the foregrounds alone
        loss = config.total_variation * total_variation(smooth) + self._statistics(inside)
        if config.prompt_contrast:
            loss = loss + config.prompt_contrast * self._contrast(features, self.targets[rows])
        if config.variation_distance:
            distance = (variation_norms(smooth) - self._variation_target(x.numel(), rows, step)).abs()
            loss = loss + config.variation_distance * distance
        return loss

    def _noisy(self, images: Tensor, step: int, draw: torch.Generator) -> Tensor:
        if not self.config.noise:
            return images
        share = 1 - (1 - FINAL_NOISE) * step / self.config.steps
        return images + self.config.noise * share * normal_like(images, draw)

    def _encode(self, images: Tensor, step: int, draw: torch.Generator) -> Tensor:
        """Embeddings; coarse to fine, first of small pictures, then of half of the patches, last of everything."""
        tower, share = self.clip.image, step / max(1, self.config.steps)
        early = self.config.coarse_to_fine and share < DROPPED_UNTIL
        if early and share < COARSE_UNTIL and self.coarse is not None:
            small = F.interpolate(images, size=self.coarse.config.image_size, mode="bilinear", antialias=True)  # type: ignore[arg-type, union-attr]
            features: Tensor = self.coarse(small)
            return features
        x = tower.embed(images)
        if early and isinstance(tower, VisionTransformer):
            prefix = int(tower.config.class_token)
            kept = torch.randperm(x.shape[1] - prefix, generator=draw)[: (x.shape[1] - prefix) // 2].sort().values
            x = torch.cat([x[:, :prefix], x[:, prefix + kept.to(x.device, non_blocking=True)]], dim=1)
        for _, block in tower.named_blocks():
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False) if self.recompute else block(x)
        return tower.head(x, images)

    def _contrast(self, features: Tensor, targets: Tensor) -> Tensor:
        temperature = self.config.temperature
        if not self.config.structural_contrast:
            return semantic_injection(features, self.texts, targets, temperature)
        foregrounds, backgrounds = features.chunk(2)
        return structural_contrast(foregrounds, backgrounds, self.texts, targets, temperature)

    def _statistics(self, inside: dict[str, Tensor]) -> Tensor:
        loss = self.texts.new_zeros(())
        if self.norms:
            inputs = [inside[name] for name in self.norms]
            loss = loss + self.config.batchnorm_statistics * batchnorm_statistics(inputs, list(self.norms.values()))
        if self.attentions:
            entropies = [self._entropy(*(inside[site] for site in sites)) for sites in self.attentions]
            loss = loss - self.config.patch_similarity * torch.stack(entropies).sum()
        return loss

    def _entropy(self, inputs: Tensor, values: Tensor, probabilities: Tensor) -> Tensor:
        if self.config.patch_similarity_of == "inputs":
            context = attended_inputs(probabilities, inputs)
        else:
            context = attended_values(probabilities, values)
        assert isinstance(self.clip.image, VisionTransformer)
        shape = self.clip.image.config
        patches = (shape.image_size // shape.patch_size) ** 2  # the last ones: a class token comes first
        return patch_similarity_entropy(context[:, -patches:])

    def _jittered(self, x: Tensor, step: int, draw: torch.Generator) -> Tensor:
        config = self.config
        if not config.jitter:
            return x
        share = config.jitter * (round_of(config, step) + 1) / config.rounds  # each round reaches farther
        return roll_and_mirror(x, round(share * x.shape[-1]), draw)

    def _variation_target(self, values: int, rows: slice, step: int) -> float:
        seed = derive_seed(self.seed, "synthesize", "variation", rows.start, round_of(self.config, step))
        share = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
        return (MIN_TARGET + share * (MAX_TARGET - MIN_TARGET)) * math.sqrt(values / TARGET_VALUES)


def round_of(config: Synthesize, step: int) -> int:
    """Which of the rounds a step belongs to."""
    return min(config.rounds - 1, step // math.ceil(config.steps / config.rounds))


def bytes_kept(clip: Clip) -> int:
    """What a pass of one picture through the image tower leaves in memory until its gradients are known."""
    size = clip.preprocess.size
    picture = torch.zeros(1, 3, size, size, device=clip.logit_scale.device, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        features = clip.encode_image(picture)
    for weight in clip.image.state_dict().values():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    del features  # which held all of it, so that no two tensors had one address
    return sum(kept.values())


def _coarse_tower(clip: Clip) -> nn.Module | None:
    """The image tower for pictures of 4 x 4 patches; None where its own are not larger."""
    config = clip.image.config
    patch = config.patch_size if isinstance(config, VisionTransformerConfig) else RESNET_STRIDE
    size = COARSE_SIDE * patch
    return at_size(clip, size) if size < config.image_size else None


def _batchnorms(clip: Clip) -> dict[str, nn.BatchNorm2d]:
    return {f"image.{name}": m for name, m in clip.image.named_modules() if isinstance(m, nn.BatchNorm2d)}


def _attentions(clip: Clip) -> list[tuple[str, str, str]]:
    """The sites of each block's attention: its input, its values, its probabilities."""
    blocks = [f"image.{name}.attention" for name, _ in clip.image.named_blocks()]
    return [(f"{name}.input", f"{name}.v_out", f"{name}.probabilities") for name in blocks]
