"""Transformers for Python reads the settings; test_transformers_js.py runs the graphs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import transformers
from torch import Tensor

import d4c
from conftest import RESNET, VIT
from d4c.artifact import Exported
from d4c.artifact.architecture import ClipConfig
from d4c.models.from_transformers import config_from_transformers
from export.layouts.models import SMALL_SIGLIP, centred_error, drawn_picture, unit

Exports = Callable[..., tuple[Path, Exported]]


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("kind", "config"), [("vit", VIT), ("siglip", SMALL_SIGLIP)])
def test_the_configuration_describes_the_model_to_transformers(exports: Exports, kind: str, config: ClipConfig) -> None:
    folder, _ = exports(kind, "huggingface")
    read = config_from_transformers(settings(folder), "test")
    assert (read.embed_dim, read.text) == (config.embed_dim, config.text)
    for size in ("image_size", "patch_size", "width", "layers", "heads", "mlp_width", "activation", "norm_eps"):
        assert getattr(read.image, size) == getattr(config.image, size)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert type(theirs).__name__ == ("SiglipConfig" if kind == "siglip" else "CLIPConfig")
    assert theirs.vision_config.image_size == 32


def test_a_resnet_says_its_size_and_no_more(exports: Exports) -> None:
    folder, _ = exports("resnet", "huggingface")
    vision = settings(folder)["vision_config"]
    assert vision == {"model_type": "clip_vision_model", "image_size": RESNET.image.image_size, "projection_dim": 16}
    assert isinstance(transformers.AutoConfig.from_pretrained(folder), transformers.CLIPConfig)
    assert "no ModifiedResNet" in (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_auto_processor_prepares_as_d4c_does(exports: Exports, kind: str) -> None:
    folder, _ = exports(kind, "huggingface")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ours = d4c.load(f"local-dir:{exports(kind, 'open_clip', 'float')[0]}")
    picture = drawn_picture(0, (50, 40))
    texts = ["a photo of a cat.", "two dogs"]
    found = processor(text=texts, images=picture, padding="max_length", return_tensors="np")
    assert np.abs(found["pixel_values"][0] - ours.preprocess(picture)).max() < 0.02  # one step of 255
    for row, expected in zip(found["input_ids"], ours.tokenizer(texts), strict=True):
        end = int(expected.argmax()) + 1
        assert row[:end].tolist() == expected[:end].tolist()
        assert row.argmax() == end - 1  # padding ends no text


@pytest.mark.parametrize(("recipe", "dtypes"), [("w4a8", ["q8", "q4"]), ("w8a8", ["q8"]), ("float", ["fp32"])])
def test_the_dtype_that_is_asked_for_by_default_is_there(exports: Exports, recipe: str, dtypes: list[str]) -> None:
    folder, _ = exports("vit", "huggingface", recipe)
    suffixes = {"q8": "_quantized", "q4": "_q4", "fp32": ""}  # transformers.js, src/utils/dtypes.js
    assert settings(folder)["transformers.js_config"] == {"dtype": dtypes[0]}
    assert {p.name for p in (folder / "onnx").iterdir()} == {
        f"{model}{suffixes[dtype]}.onnx" for model in ("model", "vision_model", "text_model") for dtype in dtypes
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip"])
def test_the_combined_graph_is_transformers_clip_model(
    exports: Exports, artifacts: Callable[[str, str], Path], pixels: Tensor, kind: str
) -> None:
    folder, exported = exports(kind, "huggingface", "float")
    clip = d4c.load(f"local-dir:{artifacts(kind, 'w4a8').parent / kind}")
    ids = clip.tokenizer(["a dog", "cats and dogs"])
    given = {"pixel_values": pixels.numpy(), "input_ids": ids, "attention_mask": np.ones_like(ids)}
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, given), strict=True))
    image, text = clip.encode_image(pixels).numpy(), clip.encode_text(Tensor(ids).long()).numpy()
    assert centred_error(found["image_embeds"], unit(image)) < 1e-5
    assert centred_error(found["text_embeds"], unit(text)) < 1e-4
    logits = exported.logit_scale * unit(image) @ unit(text).T + (exported.logit_bias or 0)
    assert np.abs(found["logits_per_image"] - logits).max() < 1e-3
    assert np.array_equal(found["logits_per_text"], found["logits_per_image"].T)


def test_siglip_s_towers_are_called_as_transformers_calls_them(exports: Exports) -> None:
    folder, exported = exports("siglip", "huggingface")
    assert (exported.image.output, exported.text.output, exported.fixed_length) == (*["pooler_output"] * 2, True)
    assert exported.logit_bias == pytest.approx(-10)
    config = settings(folder)
    assert (config["model_type"], config["architectures"]) == ("siglip", ["SiglipModel"])
    graph = onnx.load(folder / "onnx" / "text_model_quantized.onnx").graph
    assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == ["batch", 16]
