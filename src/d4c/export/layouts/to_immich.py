"""The folder in which Immich's machine learning keeps an open_clip model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d4c.artifact.exported import Storage
from d4c.artifact.open_clip_names import open_clip_model_cfg
from d4c.export.layouts.files import has_fixed_length, refuse_longest, write_image, write_json, write_text
from d4c.export.layouts.layout import Layout, Towers
from d4c.export.source import Source

# Its list of open_clip models (immich_ml/models/constants.py, 2026), those that d4c can read.
_LISTED = """
RN50__openai RN101__openai RN50x4__openai RN50x16__openai RN50x64__openai RN50__cc12m RN50__yfcc15m RN101__yfcc15m
ViT-B-32__openai ViT-B-16__openai ViT-L-14__openai ViT-L-14-336__openai ViT-B-32__laion400m_e31 ViT-B-32__laion400m_e32
ViT-B-32__laion2b_e16 ViT-B-32__laion2b-s34b-b79k ViT-B-16__laion400m_e31 ViT-B-16__laion400m_e32
ViT-B-16-plus-240__laion400m_e31 ViT-B-16-plus-240__laion400m_e32 ViT-L-14__laion400m_e31 ViT-L-14__laion400m_e32
ViT-L-14__laion2b-s32b-b82k ViT-L-14-quickgelu__dfn2b ViT-H-14__laion2b-s32b-b79k ViT-H-14-quickgelu__dfn5b
ViT-H-14-378-quickgelu__dfn5b ViT-g-14__laion2b-s12b-b42k ViT-B-16-SigLIP__webli ViT-B-16-SigLIP-256__webli
ViT-B-16-SigLIP-384__webli ViT-B-16-SigLIP-512__webli ViT-B-16-SigLIP-i18n-256__webli ViT-L-16-SigLIP-256__webli
ViT-L-16-SigLIP-384__webli ViT-SO400M-14-SigLIP-384__webli ViT-B-16-SigLIP2__webli ViT-B-32-SigLIP2-256__webli
ViT-L-16-SigLIP2-256__webli ViT-L-16-SigLIP2-384__webli ViT-L-16-SigLIP2-512__webli ViT-SO400M-14-SigLIP2__webli
ViT-SO400M-14-SigLIP2-378__webli ViT-SO400M-16-SigLIP2-256__webli ViT-SO400M-16-SigLIP2-384__webli
ViT-SO400M-16-SigLIP2-512__webli ViT-gopt-16-SigLIP2-256__webli ViT-gopt-16-SigLIP2-384__webli
"""


def write(source: Source, folder: Path, storages: Sequence[Storage]) -> Towers:
    """visual/ and textual/, each with its graph and settings, and open_clip's config.json."""
    refuse_longest(source, "Immich")
    storage = storages[-1]
    image = write_image(
        source, folder, "visual/model.onnx", storage, input="image", output="embedding", normalize=True
    )  # fmt: skip
    text = write_text(
        source, folder, "textual/model.onnx", storage, input="text", output="embedding", normalize=True, id_type="int32"
    )  # fmt: skip
    write_json(folder / "config.json", _model_cfg(source))
    size = (source.preprocess.size, source.preprocess.size)
    about = dataclasses.asdict(source.preprocess) | {"size": size, "mode": "RGB", "fill_color": 0}
    write_json(folder / "visual" / "preprocess_cfg.json", about)
    source.tokenizer.save(folder / "textual")
    return Towers(image, text, has_fixed_length(source))


def _model_cfg(source: Source) -> dict[str, Any]:
    """What Immich reads of open_clip's configuration, and the rest where open_clip's own towers are meant."""
    config, cleaning = source.config, source.tokenizer.cleaning
    try:
        model_cfg = open_clip_model_cfg(config)
    except ValueError:  # timm's towers have no sizes there, and nobody reads them
        model_cfg = {
            "embed_dim": config.embed_dim,
            "vision_cfg": {"image_size": config.image.image_size},
            "text_cfg": {"context_length": config.text.context_length, "vocab_size": config.text.vocab_size},
        }
    if cleaning in ("open_clip_canonicalize", "siglip"):  # lower case without punctuation
        model_cfg["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return model_cfg


def listed_name(source: Source) -> str | None:
    """The name under which Immich lists a model, or None."""
    plain = source.name.replace("/", "-").replace("_", "-")
    return next((name for name in _LISTED.split() if name.replace("_", "-") == plain), None)


def usage(source: Source) -> str:
    """Where to put it."""
    name = listed_name(source)
    if name is None:
        where = f"""Immich accepts only the models of its list, and {source.name} is not among them. It runs under the
name of a listed model whose embedding has {source.config.embed_dim} numbers too: LISTED_NAME below."""
    else:
        where = f"Immich lists this model as `{name}`."
    return f"""{where}

1. Stop the machine-learning container, and move the folder `clip/{name or "LISTED_NAME"}` of its model cache away.
2. Put the content of this folder there, into `clip/{name or "LISTED_NAME"}/`, or one level deeper, into the folder of
   the revision, where `MACHINE_LEARNING_MODEL_REVISION` is set to another than `main`.
3. Start it, choose that name under Administration, Settings, Machine Learning, Smart Search, and run the job Smart
   Search for all pictures: embeddings of another model do not compare with these.

A model file that is there is not downloaded again. Inputs are `image`, float32 [1, 3, size, size], and `text`, int32
[1, context]; embeddings leave the graphs with length 1.
"""


LAYOUT = Layout("immich", "onnx", "onnxruntime", "int32", True, write, usage)
