"""What is measured: the variants of an artifact, or exported folders as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from d4c.artifact import Exported, ExportedTower, check_files, read_artifact, read_exported
from d4c.artifact.exported import FLOAT_RECIPE
from d4c.artifact.work import Report
from d4c.errors import ExportError, UsageError
from d4c.experiments.bench.inputs import Judges, calibration_of, judges_of, judges_without_model
from d4c.experiments.bench.request import Request
from d4c.experiments.bench.run import Embeddings, Tower
from d4c.experiments.bench.session import Graph, Run, open_graph, require
from d4c.experiments.bench.variants import TOWERS, Kitchen, choose
from d4c.export.source import source_of
from d4c.export.towers import text_length_is_fixed
from d4c.inputs import Preprocess, Tokenizer
from d4c.models import Clip, TorchEncoder
from d4c.pipeline.exporting import float_source
from d4c.pipeline.origin import float_model

Subjects = tuple[list[Tower], Judges, dict[str, Any]]


def artifact_variants(request: Request, report: Report) -> Subjects:
    """Make every variant of both towers.

    Returns:
        the towers; what judges them; and what they are, as JSON.
    """
    artifact = read_artifact(request.folders[0])
    integer = source_of(artifact)
    names = choose(request.variants, integer)
    for name in names:
        require("openvino" if name.startswith("openvino") else "onnxruntime")
    clip = float_model(artifact.folder, request.against, "cpu")
    fixed = text_length_is_fixed(integer)
    calibration = calibration_of(artifact, clip, request.images, fixed, report)
    judges = judges_of(artifact, clip, calibration, fixed, report)
    request.work_folder.mkdir(parents=True, exist_ok=True)
    kitchen = Kitchen(float_source(clip), integer, calibration, request.work_folder)
    reference = _torch_reference(clip, judges)
    towers, done = [], 0
    for kind in TOWERS:
        graphs, failed = [], {}
        for name in names:
            report("graphs", done, len(TOWERS) * len(names))
            try:
                graphs.append(kitchen.make(kind, name))
            except ExportError as error:
                failed[name] = str(error)
            done += 1
        towers.append(Tower(kind, graphs, failed, reference[kind]))
    report("graphs", done, done)
    about = {
        "model": artifact.manifest["source"], "recipe": integer.recipe, "content_sha256": integer.content_sha256,
        "calibration": {"images": calibration.source, "texts": len(calibration.texts)},
    }  # fmt: skip
    return towers, judges, about


def exported_folders(request: Request) -> Subjects:
    """See exported folders as variants of one model; returns as `artifact_variants` does.

    Raises:
        UsageError: they are not of one model.
    """
    found = []
    for folder in request.folders:
        exported = read_exported(folder)
        check_files(folder, exported)
        require(_runtime_of(folder, exported))
        found.append((folder, exported))
    first_folder, first = found[0]
    for folder, exported in found:
        if exported.fingerprint != first.fingerprint:
            raise UsageError(f"{folder} is of another model than {first_folder}; measure one model at a time")
    fixed = all(exported.fixed_length for _, exported in found)
    judges = judges_without_model(Preprocess.from_folder(first_folder), Tokenizer.from_folder(first_folder), fixed)
    graphs = {kind: [g for folder, e in found for g in _graphs(folder, e, kind)] for kind in TOWERS}
    normalized = any(exported.normalized for _, exported in found)
    reference = _reference_of(request, found, judges)
    towers = [Tower(kind, graphs[kind], {}, reference[kind], normalized) for kind in TOWERS]
    about = {"model": first.source, "recipe": ", ".join(dict.fromkeys(e.recipe for _, e in found))}
    return towers, judges, about


def _runtime_of(folder: Path, exported: Exported) -> Literal["onnxruntime", "openvino"]:
    """Raise `UsageError` where a folder holds weights for open_clip."""
    if exported.runtime == "open_clip":
        raise UsageError(f"{folder}: weights for open_clip, no graphs; export with another --layout")
    return exported.runtime


def _graphs(folder: Path, exported: Exported, kind: str) -> list[Graph]:
    """Every form of one tower in a folder, named after the folder, and after the form where there are several."""
    tower: ExportedTower = exported.image if kind == "image" else exported.text
    graphs = []
    for storage, file in tower.files.items():
        path = folder / file
        files = [path, path.with_suffix(".bin")] if exported.runtime == "openvino" else [path]
        name = str(folder) + (f" {storage}" if len(tower.files) > 1 else "")
        length = Tokenizer.from_folder(folder).context_length if kind == "text" and exported.fixed_length else None
        dtype = exported.id_type if kind == "text" else "float32"
        graphs.append(
            Graph(name, _runtime_of(folder, exported), tuple(map(str, files)), tower.input, tower.output, dtype, length)
        )  # fmt: skip
    return graphs


def _reference_of(
    request: Request, found: Sequence[tuple[Path, Exported]], judges: Judges
) -> Mapping[str, Embeddings | None]:
    """Embeddings of the float model that is named, else of an exported float model among the folders, else none."""
    if request.against is not None:
        return _torch_reference(float_model(request.folders[0], request.against, "cpu"), judges)
    floating = [(folder, exported) for folder, exported in found if exported.recipe == FLOAT_RECIPE]
    if not floating:
        return dict.fromkeys(TOWERS)
    return {kind: _embed(_graphs(*floating[0], kind)[0], judges, kind) for kind in TOWERS}


def _embed(graph: Graph, judges: Judges, kind: str) -> Embeddings:
    run: Run = open_graph(graph, 1)
    batches = judges.batches(kind)
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for name, x in batches.items():
        parts.setdefault(name.rpartition(" ")[0], []).append(run(graph.feed(x)))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _torch_reference(clip: Clip, judges: Judges) -> dict[str, Embeddings]:
    encoder = TorchEncoder(clip, batch=8)
    images = {name: encoder.encode_image(pixels) for name, pixels in judges.images.items()}
    return {"image": images, "text": {"texts": encoder.encode_text(judges.ids)}}
