"""open_clip itself reads the folder."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

import d4c
from d4c.artifact import Exported
from d4c.errors import UnsupportedModelError
from d4c.export import Source, run
from d4c.export.layouts.to_open_clip import with_batch_norms
from d4c.inputs import Tokenizer
from d4c.models import Clip
from d4c.quantizers.layers import UniformQuantizer
from export.layouts.models import drawn_picture
from models.oracle import row_error

Exports = Callable[..., tuple[Path, Exported]]
Artifacts = Callable[[str, str], Path]


def with_float_activations(folder: Path) -> Clip:
    """The simulation of an artifact with every quantizer of a tensor taken out."""
    quantized = d4c.load_quantized(folder)
    for site in quantized.tensor_quantizers():
        parent, _, leaf = site.rpartition(".")
        setattr(quantized.get_submodule(parent), leaf, nn.Identity())
    assert not any(isinstance(module, UniformQuantizer) for module in quantized.modules())
    return quantized


@pytest.mark.parametrize(("kind", "recipe"), [
    ("vit", "w4a8"), ("vit", "w8a8"), ("vit", "w4"), ("resnet", "w4a8"), ("resnet", "w8"), ("vit", "float"),
    ("resnet", "float"),
])  # fmt: skip
def test_it_embeds_as_the_integers_with_float_activations_do(
    exports: Exports, artifacts: Artifacts, pixels: Tensor, ids: Tensor, kind: str, recipe: str
) -> None:
    folder, _ = exports(kind, "open_clip", recipe)
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    if recipe == "float":
        expected: Clip = d4c.load(f"local-dir:{artifacts(kind, 'w4a8').parent / kind}")
    else:
        expected = with_float_activations(artifacts(kind, recipe))
    with torch.no_grad():
        assert row_error(model.encode_image(pixels), expected.encode_image(pixels)) < 1e-5
        assert row_error(model.encode_text(ids), expected.encode_text(ids)) < 1e-5
    assert model.logit_scale.item() == pytest.approx(expected.logit_scale.item())


def test_rounded_weights_are_not_the_float_ones(exports: Exports, pixels: Tensor) -> None:
    models = [open_clip.create_model(f"local-dir:{exports('vit', 'open_clip', r)[0]}").eval() for r in ("w4", "float")]
    with torch.no_grad():
        assert row_error(*(model.encode_image(pixels) for model in models)) > 1e-2


def test_batch_norms_let_every_number_through_unchanged(
    exports: Exports, sources: Callable[[str, str], Source]
) -> None:
    state = with_batch_norms(sources("resnet", "float"))
    norm = nn.BatchNorm2d(2).eval()  # of the stem
    for kind in ("weight", "running_mean", "running_var"):
        getattr(norm, kind).data = torch.from_numpy(state[f"image.stem.bn1.{kind}"])
    norm.bias.data.zero_()
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 1e3
    assert torch.equal(norm(x), x)
    assert np.array_equal(state["image.stem.bn1.bias"], sources("resnet", "float").arrays["image.stem.conv1.bias"])


def test_preprocessing_and_tokenizer_are_open_clip_s_own(exports: Exports) -> None:
    folder, _ = exports("vit", "open_clip")
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    clip = d4c.load(f"local-dir:{folder}")  # which reads open_clip's files
    picture = drawn_picture(0, (50, 41))
    assert np.abs(transform(picture).numpy() - clip.preprocess(picture)).max() < 1e-3
    texts = ["a photo of a cat.", "It's &amp; 12 CATS", "word " * 100]
    assert np.array_equal(open_clip.get_tokenizer(f"local-dir:{folder}")(texts).numpy(), clip.tokenizer(texts))


def test_a_tokenizer_of_its_own_is_named_in_the_settings(sources: Callable[[str, str], Source], tmp_path: Path) -> None:
    source = sources("vit", "w4a8")
    source.tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"d4c_cleaning": "open_clip_canonicalize"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    run(dataclasses.replace(source, tokenizer=Tokenizer.from_folder(tmp_path)), "open_clip", tmp_path / "out")
    text = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["tokenizer_kwargs"] == {"clean": "canonicalize"}
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    assert isinstance(theirs, open_clip.tokenizer.HFTokenizer)
    found = theirs(["a photo, of a_CAT!"])[0].tolist()
    assert found[: found.index(49407)] == Tokenizer.openai()("a photo of a cat")[0][: found.index(49407)].tolist()


def test_siglip_which_open_clip_takes_from_timm_is_refused(
    sources: Callable[[str, str], Source], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match="timm's named models alone"):
        run(sources("siglip", "float"), "open_clip", tmp_path / "out")
    assert not any(tmp_path.iterdir())
