"""What several layouts write: graphs, and small files beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from d4c.artifact.exported import ExportedTower, Storage
from d4c.errors import ExportError, UnsupportedModelError
from d4c.export.source import Source

MOST_BYTES = 2_000_000_000  # of weights in one ONNX file, which is a protocol buffer message of less than 2 GiB


def write_image(
    source: Source, folder: Path, file: str, storage: Storage, *, input: str = "pixel_values",
    output: str = "image_embeds", normalize: bool = False,
) -> ExportedTower:  # fmt: skip
    """Write the image tower's graph; *.xml is OpenVINO's form."""
    from d4c.export.towers import image_graph

    check_size(source, storage, file, "image.")
    _save(image_graph(source, storage=storage, input=input, output=output, normalize=normalize), folder / file)
    return ExportedTower({storage: file}, input, output)


def write_text(
    source: Source, folder: Path, file: str, storage: Storage, *, input: str = "input_ids",
    output: str = "text_embeds", normalize: bool = False, id_type: Literal["int32", "int64"] = "int64",
) -> ExportedTower:  # fmt: skip
    """Write the text tower's graph; *.xml is OpenVINO's form."""
    from d4c.export.towers import text_graph

    check_size(source, storage, file, "text.")
    graph = text_graph(
        source, storage=storage, input=input, output=output, normalize=normalize, id_type=id_type
    )  # fmt: skip
    _save(graph, folder / file)
    return ExportedTower({storage: file}, input, output)


def write_combined(source: Source, folder: Path, file: str, storage: Storage) -> None:
    """Write both towers and their logits as one graph."""
    from d4c.export.towers import combined_graph

    check_size(source, storage, file, "image.", "text.")
    _save(combined_graph(source, storage=storage), folder / file)


def has_fixed_length(source: Source) -> bool:
    """Whether the text graph takes the whole context alone."""
    from d4c.export.towers import text_length_is_fixed

    return text_length_is_fixed(source)


def check_size(source: Source, storage: Storage, file: str, *towers: str) -> None:
    """Raise `ExportError` if the weights of the towers do not fit one file."""
    count = 0.0
    for name, array in source.arrays.items():
        if name.startswith(towers):
            four = storage == "int4" and source.weights.get(name.removesuffix(".weight"), 32) <= 4
            count += array.nbytes * (0.5 if four else 1.0)
    if count > MOST_BYTES:
        raise ExportError(
            f"{source.name}: {file} would hold {count / 1e9:.1f} GB of weights, more than the {MOST_BYTES / 1e9:g} GB "
            "that fit one ONNX file"
        )


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_special_tokens(folder: Path) -> None:
    """Write special_tokens_map.json from the tokenizer_config.json beside it, which older readers do not look at."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kinds = ("bos_token", "eos_token", "unk_token", "pad_token")
    write_json(folder / "special_tokens_map.json", {kind: config[kind] for kind in kinds if kind in config})


def refuse_longest(source: Source, reader: str) -> None:
    """Raise `UnsupportedModelError` for a preprocessing that only open_clip and d4c have."""
    if source.preprocess.resize_mode == "longest":
        raise UnsupportedModelError(
            f"{source.name} scales the long side of pictures, which {reader} cannot; --layout onnx leaves it to you"
        )


def _save(model: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xml":
        from d4c.export.openvino import save_openvino

        save_openvino(model, path)
    else:
        path.write_bytes(model.SerializeToString())
