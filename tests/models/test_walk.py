import copy

import pytest
import torch
from torch import Tensor, nn

from d4c.models import Clip
from d4c.models.walk import Walk


@pytest.mark.parametrize("model", ["tiny_clip", "tiny_resnet"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_change_anywhere_gives_what_the_whole_changed_model_gives(
    model: str, tower: str, pixels: Tensor, ids: Tensor, request: pytest.FixtureRequest
) -> None:
    clip: Clip = request.getfixturevalue(model)
    before = copy.deepcopy(clip.state_dict())
    walk = Walk.over(clip, tower, pixels if tower == "image" else ids)  # type: ignore[arg-type]
    layers = [n for n, m in clip.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and n.startswith(tower)]
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        stand_in = copy.deepcopy(clip.get_submodule(layer))
        stand_in.weight.data = 0.5 * stand_in.weight
        whole = copy.deepcopy(clip)
        whole.get_submodule(layer).weight.data *= 0.5
        with torch.no_grad():
            expected = whole.encode_image(pixels) if tower == "image" else whole.encode_text(ids)
        torch.testing.assert_close(walk.outputs_with({layer: stand_in}), expected)
    with torch.no_grad():
        plain = clip.encode_image(pixels) if tower == "image" else clip.encode_text(ids)
    torch.testing.assert_close(walk.outputs, plain)
    torch.testing.assert_close(walk.outputs_with({layers[0]: clip.get_submodule(layers[0])}), plain)
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())


def test_several_changes_at_once(tiny_clip: Clip, pixels: Tensor) -> None:
    names = ["image.blocks.1.mlp.fc1", "image.blocks.0.attention.out"]
    walk = Walk.over(tiny_clip, "image", pixels)
    whole = copy.deepcopy(tiny_clip)
    for name in names:
        whole.get_submodule(name).weight.data *= 0.5
    changed = walk.outputs_with({name: whole.get_submodule(name) for name in names})
    with torch.no_grad():
        torch.testing.assert_close(changed, whole.encode_image(pixels))
