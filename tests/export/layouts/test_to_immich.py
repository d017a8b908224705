"""A reader that does what Immich's machine learning does with the folder (immich_ml/models/clip, 2026)."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import d4c
from d4c.artifact import Exported
from d4c.export import Source
from d4c.export.layouts.to_immich import listed_name
from export.layouts.models import centred_error, drawn_picture, unit

Exports = Callable[..., tuple[Path, Exported]]
TEXTS = ["a photo of a cat.", "two   dogs on\ta beach", "A RED car", "word " * 100]


class Immich:
    """Its visual and textual encoders: files, names, types and the order of steps as there."""

    def __init__(self, folder: Path) -> None:
        self.text_cfg = json.loads((folder / "config.json").read_text())["text_cfg"]
        self.pictures = json.loads((folder / "visual" / "preprocess_cfg.json").read_text())
        pad = json.loads((folder / "textual" / "tokenizer_config.json").read_text())["pad_token"]
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
        length = self.text_cfg.get("context_length", 77)
        self.tokenizer.enable_padding(length=length, pad_token=pad, pad_id=self.tokenizer.token_to_id(pad))
        self.tokenizer.enable_truncation(max_length=length)
        self.visual = onnxruntime.InferenceSession(folder / "visual" / "model.onnx")
        self.textual = onnxruntime.InferenceSession(folder / "textual" / "model.onnx")

    def embed_image(self, image: Image.Image) -> NDArray[np.float32]:
        size = self.pictures["size"][0] if isinstance(self.pictures["size"], list) else self.pictures["size"]
        method = {m.name.lower(): m for m in Image.Resampling}[self.pictures["interpolation"].lower()]
        assert self.pictures["resize_mode"] in ("shortest", "squash")
        if self.pictures["resize_mode"] == "squash":
            image = image.resize((size, size), method)
        else:
            width, height = image.size
            wide = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
            image = image.resize(wide, method)
            left, top = (int(side / 2 - size / 2) for side in image.size)
            image = image.crop((left, top, left + size, top + size))
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255.0
        mean, std = (np.array(self.pictures[key], np.float32) for key in ("mean", "std"))
        pixels = ((pixels - mean) / std).transpose(2, 0, 1)
        return self.visual.run(None, {"image": pixels[None].astype(np.float32)})[0][0]

    def ids(self, text: str) -> NDArray[np.int32]:
        return np.array([self.tokenizer.encode(" ".join(text.split())).ids], np.int32)

    def embed_text(self, text: str) -> NDArray[np.float32]:
        return self.textual.run(None, {"text": self.ids(text)})[0][0]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_it_embeds_pictures_and_texts_with_length_1_as_the_artifact_does(
    exports: Exports, artifacts: Callable[[str, str], Path], kind: str
) -> None:
    immich, clip = Immich(exports(kind, "immich")[0]), d4c.load_quantized(artifacts(kind, "w4a8"))
    pictures = [drawn_picture(i, (40 + 2 * i, 60 - 2 * i)) for i in range(8)]
    images = np.stack([immich.embed_image(picture) for picture in pictures])
    texts = np.stack([immich.embed_text(text) for text in TEXTS])
    prepared = Tensor(np.stack([clip.preprocess(picture) for picture in pictures]))
    assert np.allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-5)
    assert centred_error(images, unit(clip.encode_image(prepared).numpy())) < 0.05
    assert centred_error(texts, unit(clip.encode_text(Tensor(clip.tokenizer(TEXTS)).long()).numpy())) < 0.05


def test_texts_are_padded_and_cut_to_the_context_with_the_end_where_it_was(
    exports: Exports, artifacts: Callable[[str, str], Path]
) -> None:
    immich, clip = Immich(exports("vit", "immich")[0]), d4c.load_quantized(artifacts("vit", "w4a8"))
    for text, expected in zip(TEXTS, clip.tokenizer(TEXTS), strict=True):
        (found,) = immich.ids(text)
        end = int(expected.argmax()) + 1
        assert found.shape == (77,)
        assert found[:end].tolist() == expected[:end].tolist()
        assert found.argmax() == end - 1


def test_several_rows_at_once_are_the_same_rows(exports: Exports, pixels: Tensor) -> None:
    immich = Immich(exports("vit", "immich")[0])
    rows = [immich.visual.run(None, {"image": pixels.numpy()[i : i + 1]})[0][0] for i in range(3)]
    assert np.allclose(immich.visual.run(None, {"image": pixels.numpy()[:3]})[0], rows, atol=0.02)


def test_siglip_s_configuration_holds_what_is_read(exports: Exports) -> None:
    folder, exported = exports("siglip", "immich", "float")
    immich = Immich(folder)
    assert immich.text_cfg["context_length"] == 16
    assert immich.text_cfg["tokenizer_kwargs"] == {"clean": "canonicalize"}
    assert exported.fixed_length
    assert immich.embed_text("a dog").shape == (32,)
    assert immich.embed_image(drawn_picture(0, (40, 60))).shape == (32,)


@pytest.mark.parametrize(("name", "listed"), [
    ("ViT-B-32__openai", "ViT-B-32__openai"),
    ("ViT-B-32__laion2b_s34b_b79k", "ViT-B-32__laion2b-s34b-b79k"),
    ("ViT-L-14-336__openai", "ViT-L-14-336__openai"),
    ("RN50x4__openai", "RN50x4__openai"),
    ("tiny", None),
    ("ViT-B-32__datacomp_xl_s13b_b90k", None),
])  # fmt: skip
def test_the_listed_name_is_told_where_there_is_one(
    sources: Callable[[str, str], Source], name: str, listed: str | None
) -> None:
    assert listed_name(dataclasses.replace(sources("vit", "float"), name=name)) == listed
