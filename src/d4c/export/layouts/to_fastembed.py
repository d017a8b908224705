"""Two folders for fastembed, under the names of models that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d4c.artifact.exported import Storage
from d4c.export.layouts.files import (
    has_fixed_length,
    refuse_longest,
    write_image,
    write_json,
    write_special_tokens,
    write_text,
)
from d4c.export.layouts.layout import Layout, Towers
from d4c.export.layouts.to_huggingface import transformers_config
from d4c.export.source import Source

CLIP_NAMES = ("Qdrant/clip-ViT-B-32-vision", "Qdrant/clip-ViT-B-32-text")
# Pads every text to the context, as models need that see the padding.
PADDED_NAMES = ("google/siglip2-base-patch16-224", "google/siglip2-base-patch16-224")


def write(source: Source, folder: Path, storages: Sequence[Storage]) -> Towers:
    """image/ and text/, each complete."""
    refuse_longest(source, "fastembed")
    storage, fixed = storages[-1], has_fixed_length(source)
    for part in ("image", "text"):
        write_json(folder / part / "config.json", transformers_config(source))
    source.preprocess.save(folder / "image")
    source.tokenizer.save(folder / "text")
    write_special_tokens(folder / "text")
    if fixed:
        image = write_image(
            source, folder, "image/onnx/vision_model.onnx", storage, output="pooler_output", normalize=True
        )  # fmt: skip
        text = write_text(
            source, folder, "text/onnx/text_model.onnx", storage, output="pooler_output", normalize=True
        )  # fmt: skip
    else:
        image = write_image(source, folder, "image/model.onnx", storage, normalize=True)
        text = write_text(source, folder, "text/model.onnx", storage, normalize=True)
    return Towers(image, text, fixed)


def usage(source: Source) -> str:
    """How to load it."""
    image, text = PADDED_NAMES if has_fixed_length(source) else CLIP_NAMES
    return f"""```python
from fastembed import ImageEmbedding, TextEmbedding
images = ImageEmbedding("{image}", specific_model_path="FOLDER/image")
texts = TextEmbedding("{text}", specific_model_path="FOLDER/text")
vectors = list(images.embed(["photo.jpg"])), list(texts.embed(["a photo of a cat."]))
```

The names are fastembed's, which has no way to add an image model of one's own; the weights are this folder's. Its
`embedding_size` speaks of the named model: vectors here have {source.config.embed_dim} numbers, of length 1.
"""


LAYOUT = Layout("fastembed", "fastembed", "onnxruntime", "int64", True, write, usage)
