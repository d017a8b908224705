import math

import pytest
import torch
from torch import Tensor

from d4c.experiments.analyze.patches import (
    as_patches,
    box_patches,
    measure_set,
    pair_statistics,
    patch_layers,
    patch_similarity,
    patches_by_layer,
    split_patches,
)
from d4c.images import ImageSet
from d4c.models import Clip


def test_similarity_is_the_cosine_whatever_the_length() -> None:
    x = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[[1.0, 0.0, half], [0.0, 1.0, half], [half, half, 1.0]]])
    torch.testing.assert_close(patch_similarity(x), expected)


def square_in_the_middle(rows: int = 4) -> tuple[Tensor, Tensor]:
    """Patches [1, 16, 2] of two directions, one of them in the inner 2 x 2; and where that is."""
    inner = torch.zeros(rows, rows, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    x = torch.where(inner.flatten()[:, None], torch.tensor([1.0, 0.2]), torch.tensor([0.1, 1.0]))
    return x[None], inner.flatten()[None]


def test_the_group_away_from_the_border_is_the_foreground() -> None:
    x, inner = square_in_the_middle()
    assert torch.equal(split_patches(x, 4, 4), inner)
    assert torch.equal(split_patches(x.flip(-1) * 3, 4, 4), inner)  # neither direction nor length matters


def test_on_a_tie_of_borders_the_smaller_group_is_the_foreground() -> None:
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])  # 2 x 2: all on the border
    assert split_patches(x, 2, 2).tolist() == [[False, False, True, False]]


def test_each_image_is_split_by_itself() -> None:
    x, _ = square_in_the_middle()
    other = x.roll(1, dims=1)
    both = split_patches(torch.cat([x, other]), 4, 4)
    assert torch.equal(both[:1], split_patches(x, 4, 4))
    assert torch.equal(both[1:], split_patches(other, 4, 4))


def test_patches_in_a_box_have_their_centre_in_it() -> None:
    # 4 x 4 patches of 8 pixels: centres at 4, 12, 20, 28; the box covers 4..19 down and 12..19 across
    box = torch.tensor([[4, 12, 16, 8]])
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[0:2, 1] = True
    assert torch.equal(box_patches(box, 32, 4, 4), expected.flatten()[None])


def test_pair_statistics_by_hand() -> None:
    similarity = torch.tensor(
        [[[1.0, 0.8, 0.2, 0.4], [0.8, 1.0, 0.0, 0.6], [0.2, 0.0, 1.0, 0.5], [0.4, 0.6, 0.5, 1.0]]]
    )
    found = pair_statistics(similarity, torch.tensor([[True, True, False, False]]))
    assert found["foreground"]["mean"].item() == pytest.approx(0.8)  # one pair
    assert found["foreground"]["variance"].item() == pytest.approx(0, abs=1e-7)
    assert found["background"]["mean"].item() == pytest.approx(0.5)
    # 0.2, 0.4, 0.0, 0.6: mean 0.3, squares of deviations 0.01 + 0.01 + 0.09 + 0.09 = 0.2, over 4
    assert found["across"]["mean"].item() == pytest.approx(0.3)
    assert found["across"]["variance"].item() == pytest.approx(0.05)


def test_an_image_without_such_pairs_has_no_statistics() -> None:
    found = pair_statistics(torch.eye(3)[None], torch.zeros(1, 3, dtype=torch.bool))
    assert bool(found["foreground"]["mean"].isnan().all())
    assert found["background"]["mean"].item() == 0


def test_a_vits_patches_lack_the_class_token_and_a_resnets_are_positions() -> None:
    tokens = torch.arange(12.0).reshape(1, 3, 4)
    assert torch.equal(as_patches(tokens, True), tokens[:, 1:])
    assert torch.equal(as_patches(tokens, False), tokens)
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)  # [image, channel, height, width]
    assert as_patches(maps, False)[0, 1].tolist() == [1.0, 5.0]


def test_layers_of_both_kinds_of_towers(tiny_clip: Clip, tiny_resnet: Clip) -> None:
    assert patch_layers(tiny_clip) == {
        "block 0": "image.blocks.0.attention.out",
        "block 1": "image.blocks.1.attention.out",
    }
    assert patch_layers(tiny_resnet) == {"stage 1": "image.layer2.0", "stage 2": "image.layer3.0"}  # 8 x 8, 4 x 4


@pytest.mark.parametrize(("model", "shape"), [("tiny_clip", (8, 4, 32)), ("tiny_resnet", (8, 64, 16))])
def test_patches_are_taken_from_the_model(
    model: str, shape: tuple[int, ...], pixels: Tensor, request: pytest.FixtureRequest
) -> None:
    clip: Clip = request.getfixturevalue(model)
    layers = patch_layers(clip)
    found = patches_by_layer(clip, pixels, layers, batch=3)
    assert tuple(found[next(iter(layers))].shape) == shape


def test_only_sets_with_boxes_are_measured_by_boxes(tiny_clip: Clip, pixels: Tensor) -> None:
    images = ImageSet.unlabelled(pixels, "test")
    assert measure_set(tiny_clip, images)["boxes"] is None
    boxed = ImageSet(pixels, images.prompt_index, torch.tensor([[0, 0, 32, 16]]).expand(8, 4), (), "test")
    found = measure_set(tiny_clip, boxed)
    assert found["boxes"]["block 0"]["across"]["variance"] > 0
    assert found["layers"]["block 0"].keys() == {"foreground", "background", "across"}
