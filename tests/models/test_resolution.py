import copy

import pytest
import torch

from d4c.models import Clip
from d4c.models.resolution import at_size, interpolate_positions


def test_positions_of_their_own_size_stay() -> None:
    table = torch.randn(17, 6)
    assert interpolate_positions(table, 1, 4) is table


def test_what_belongs_to_no_patch_is_not_mixed_in() -> None:
    table = torch.zeros(17, 2)
    table[0] = 7
    smaller = interpolate_positions(table, 1, 2)
    assert smaller.shape == (5, 2)
    assert bool((smaller[0] == 7).all())
    assert not bool(smaller[1:].any())


def test_a_slope_stays_a_slope() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 8).reshape(64, 1)
    found = interpolate_positions(rows, 0, 4).reshape(4, 4)
    torch.testing.assert_close(found, found[:, :1].expand(4, 4), rtol=0, atol=1e-5)
    assert bool((found[:, 0].diff() > 1.5).all())


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet", "tiny_siglip"])
def test_a_tower_at_its_own_size_is_itself(model: str, request: pytest.FixtureRequest, pixels: torch.Tensor) -> None:
    clip: Clip = request.getfixturevalue(model)
    assert torch.equal(at_size(clip, clip.preprocess.size)(pixels), clip.encode_image(pixels))


@pytest.mark.parametrize(("model", "size"), [("tiny_clip", 16), ("tiny_resnet", 64)])
def test_another_size_shares_weights_and_changes_nothing(
    model: str, size: int, request: pytest.FixtureRequest, pixels: torch.Tensor
) -> None:
    clip: Clip = request.getfixturevalue(model)
    before, config = copy.deepcopy(clip.state_dict()), clip.image.config
    tower = at_size(clip, size)
    y = tower(torch.nn.functional.interpolate(pixels, size=size))
    assert y.shape == clip.encode_image(pixels).shape
    assert bool(y.isfinite().all())
    assert clip.image.config is config
    after = clip.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    shared = {id(p) for p in clip.image.parameters()}
    own = [name for name, p in tower.named_parameters() if id(p) not in shared]
    assert [name.rpartition(".")[2] for name in own] == ["position_embedding"]
