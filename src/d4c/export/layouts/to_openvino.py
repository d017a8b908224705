"""Two models in OpenVINO's own form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d4c.artifact.exported import Storage
from d4c.export.layouts.files import has_fixed_length, write_image, write_text
from d4c.export.layouts.layout import Layout, Towers
from d4c.export.source import Source


def write(source: Source, folder: Path, storages: Sequence[Storage]) -> Towers:
    """image.xml and text.xml, each with its *.bin."""
    storage = storages[-1]
    return Towers(
        write_image(source, folder, "image.xml", storage),
        write_text(source, folder, "text.xml", storage),
        has_fixed_length(source),
    )


def usage(source: Source) -> str:
    """How to load it."""
    size = source.preprocess.size
    return f"""```python
import openvino
image = openvino.Core().compile_model("image.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
embeddings = image([pixels])[0]  # pixels: float32 [batch, 3, {size}, {size}]
```

Embeddings are not normalised; ids are int64. Without the hint, OpenVINO computes what is float in bfloat16 on
processors that have it, and embeddings move further from the artifact's.
"""


LAYOUT = Layout("openvino", "openvino", "openvino", "int64", False, write, usage)
