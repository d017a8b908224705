"""Two ONNX files under plain names, for onnxruntime and for d4c's own runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d4c.artifact.exported import Storage
from d4c.export.layouts.files import has_fixed_length, write_image, write_text
from d4c.export.layouts.layout import Layout, Towers
from d4c.export.source import Source


def write(source: Source, folder: Path, storages: Sequence[Storage]) -> Towers:
    """image.onnx and text.onnx, as small as they get."""
    storage = storages[-1]
    return Towers(
        write_image(source, folder, "image.onnx", storage),
        write_text(source, folder, "text.onnx", storage),
        has_fixed_length(source),
    )


def usage(source: Source) -> str:
    """How to load it."""
    size = source.preprocess.size
    return f"""```python
import onnxruntime
image = onnxruntime.InferenceSession("image.onnx")
embeddings = image.run(None, {{"pixel_values": pixels}})[0]  # pixels: float32 [batch, 3, {size}, {size}]
```

Or `d4c classify FOLDER IMAGE LABEL…`. Embeddings are not normalised; ids are int64. Pixels are prepared as
`preprocessor_config.json` says, texts as `tokenizer.json` does.
"""


LAYOUT = Layout("onnx", "onnx", "onnxruntime", "int64", False, write, usage)
