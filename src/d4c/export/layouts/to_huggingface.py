"""The names that transformers.js and Optimum look for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d4c.artifact.architecture import ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.artifact.exported import ExportedTower, Storage
from d4c.export.layouts.files import (
    has_fixed_length,
    refuse_longest,
    write_combined,
    write_image,
    write_json,
    write_special_tokens,
    write_text,
)
from d4c.export.layouts.layout import Layout, Towers
from d4c.export.source import Source

# transformers.js: what a graph is called, and the `dtype` that asks for it.
SUFFIXES: Mapping[Storage, tuple[str, str]] = {
    "float": ("", "fp32"),
    "int8": ("_quantized", "q8"),
    "int4": ("_q4", "q4"),
}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def write(source: Source, folder: Path, storages: Sequence[Storage]) -> Towers:
    """vision_model, text_model and model (both and their logits) in onnx/, and config.json.

    Outputs are called as Transformers calls them: image_embeds and text_embeds, SigLIP's pooler_output.
    """
    refuse_longest(source, "Transformers")
    siglip = is_siglip(source)
    image_output, text_output = ("pooler_output", "pooler_output") if siglip else ("image_embeds", "text_embeds")
    image_files: dict[str, str] = {}
    text_files: dict[str, str] = {}
    for storage in storages:
        suffix, _ = SUFFIXES[storage]
        image = write_image(source, folder, f"onnx/vision_model{suffix}.onnx", storage, output=image_output)
        text = write_text(source, folder, f"onnx/text_model{suffix}.onnx", storage, output=text_output)
        write_combined(source, folder, combined_file(storage), storage)
        image_files |= image.files
        text_files |= text.files
    write_json(folder / "config.json", transformers_config(source) | {
        "transformers.js_config": {"dtype": SUFFIXES[storages[0]][1]}
    })  # fmt: skip
    write_special_tokens(folder)
    return Towers(
        ExportedTower(image_files, "pixel_values", image_output),
        ExportedTower(text_files, "input_ids", text_output),
        has_fixed_length(source),
    )


def combined_file(storage: Storage) -> str:
    """The graph of both towers."""
    return f"onnx/model{SUFFIXES[storage][0]}.onnx"


def is_siglip(source: Source) -> bool:
    """Whether Transformers would call it SiglipModel."""
    return source.logit_bias is not None


def transformers_config(source: Source) -> dict[str, Any]:
    """config.json of a CLIPModel or SiglipModel; of a ModifiedResNet, which they lack, only the image size is said."""
    kind, width = "siglip" if is_siglip(source) else "clip", source.config.embed_dim
    image = source.config.image
    vision: dict[str, Any] = {"model_type": f"{kind}_vision_model", "image_size": image.image_size}
    if not isinstance(image, ResNetConfig):
        vision |= {"patch_size": image.patch_size, **_sizes(image)}
    text = {
        "model_type": f"{kind}_text_model",
        "vocab_size": source.config.text.vocab_size,
        "max_position_embeddings": source.config.text.context_length,
        "bos_token_id": source.tokenizer.start_id,
        "eos_token_id": source.tokenizer.end_id,
        "pad_token_id": source.tokenizer.pad_id,
        **_sizes(source.config.text),
    }
    config: dict[str, Any] = {"model_type": kind, "architectures": ["SiglipModel" if kind == "siglip" else "CLIPModel"]}
    if kind == "siglip":
        text["projection_size"] = width
    else:
        config |= {"projection_dim": width, "logit_scale_init_value": math.log(source.logit_scale)}
        vision["projection_dim"] = text["projection_dim"] = width
    return config | {"text_config": text, "vision_config": vision}


def _sizes(tower: VisionTransformerConfig | TextConfig) -> dict[str, Any]:
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": _ACTIVATIONS[tower.activation],
        "layer_norm_eps": tower.norm_eps,
    }


def usage(source: Source) -> str:
    """How to load it."""
    notes = """
`CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection` load the towers alone; their embeddings are not
normalised, those of the combined model are, as in Transformers. `dtype` chooses a file: `q8` is `*_quantized.onnx`,
`q4` is `*_q4.onnx` where there is one, with the same results in fewer bytes; `fp32` is a float model.
"""
    if is_siglip(source):
        notes = "\n`SiglipVisionModel` and `SiglipTextModel` load the towers alone (`padding: 'max_length'`).\n"
    if isinstance(source.config.image, ResNetConfig):
        notes += "\nTransformers for Python has no ModifiedResNet; transformers.js runs whatever the graphs hold.\n"
    return f"""```javascript
import {{ env, pipeline }} from '@huggingface/transformers';
env.localModelPath = 'PARENT_OF_THIS_FOLDER/'; env.allowRemoteModels = false;
const classify = await pipeline('zero-shot-image-classification', 'NAME_OF_THIS_FOLDER');
classify.processor.image_processor.resample = 1; // Lanczos
console.log(await classify('photo.jpg', ['a cat', 'a dog'], {{ hypothesis_template: 'a photo of {{}}.' }}));
```
{notes}
transformers.js shrinks pictures without a filter where `bicubic` is asked for, which moves embeddings; Lanczos comes
nearer to Pillow's bicubic. A text longer than the context loses its end token there: keep texts below
{source.config.text.context_length} tokens.
"""


LAYOUT = Layout("huggingface", "transformers.js", "onnxruntime", "int64", False, write, usage)
