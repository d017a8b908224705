"""Exported graphs as an `Encoder`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.exported import EXPORTED, Exported, ExportedTower, check_files, read_exported
from d4c.errors import ExportError, MissingExtraError, UnknownNameError, UsageError
from d4c.inputs import Preprocess, Tokenizer
from d4c.runtime.contract import check_graph, check_settings
from d4c.runtime.graph import Graph
from d4c.runtime.onnxruntime_graph import OnnxruntimeGraph
from d4c.runtime.openvino_graph import OpenvinoGraph

RUNTIMES: Mapping[str, Callable[[Path, int | None], Graph]] = {
    "onnxruntime": OnnxruntimeGraph,
    "openvino": OpenvinoGraph,
}
MANIFEST = "manifest.json"  # of an artifact, from which a folder is exported


@dataclass(frozen=True)
class Tower:
    """A graph, and where it lies.

    Args:
        about: its names in the graph.
    """

    path: Path
    about: ExportedTower
    graph: Graph

    def run(self, values: NDArray[Any], embed_dim: int) -> NDArray[np.float32]:
        """One batch -> [batch, embedding].

        Raises:
            ExportError: the graph fails, or gives something else than so many finite numbers.
        """
        try:
            result = self.graph.run(self.about.input, values, self.about.output)
        except Exception as error:  # either library has exceptions of its own, which share no class
            raise ExportError(f"{self.path}: fails to run: {_last_line(error)}") from error
        if result.shape != (len(values), embed_dim) or not np.isfinite(result).all():
            raise ExportError(f"{self.path}: gives {[*result.shape]}, or numbers that are not finite; "
                              f"{EXPORTED} says {[len(values), embed_dim]}")  # fmt: skip
        return result


@dataclass(frozen=True)
class GraphEncoder:
    """The CLIP of an exported folder, as `evaluate` and `Session` use it.

    Args:
        exported: d4c.json; batch: how many images or texts are given to a graph at once.
    """

    exported: Exported
    preprocess: Preprocess
    tokenizer: Tokenizer
    image: Tower
    text: Tower
    batch: int = 64

    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """[image, 3, size, size] in normalised space -> [image, embedding], of length 1 if `exported.normalized`.

        Raises:
            ExportError: the graph fails, or its output is not finite; so also below.
        """
        return self._run(self.image, np.ascontiguousarray(pixels, np.float32), lambda batch: batch)

    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """[text, context_length] -> [text, embedding], of length 1 if `exported.normalized`.

        Where the graph takes any length, padding behind the longest text of a batch is left out. A text ends at its
        first highest id, as the graph itself has it.
        """
        ids = np.ascontiguousarray(ids, self.exported.id_type)
        return self._run(self.text, ids, lambda batch: batch if self.exported.fixed_length else _trimmed(batch))

    def _run(
        self, tower: Tower, values: NDArray[Any], prepared: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> NDArray[np.float32]:
        width = self.exported.embed_dim
        starts = range(0, len(values), self.batch)
        parts = [tower.run(prepared(values[start : start + self.batch]), width) for start in starts]
        return np.concatenate([np.empty((0, width), np.float32), *parts])  # no values, no parts


def open_encoder(folder: str | Path, storage: str | None = None, threads: int | None = None) -> GraphEncoder:
    """Open an exported folder; every file is compared with its SHA-256.

    Args:
        storage: how weights lie in the graphs, "int8" or "int4", where there is a choice; all compute the same.
        threads: of the processor; by default what the library takes.

    Raises:
        UsageError: there is no such folder, it is an artifact or has no graphs, no such storage, fewer than one
            thread.
        ExportError: the folder is broken, or a graph is not what d4c.json says.
        ModelFileError: preprocessing or tokenizer cannot be read.
        MissingExtraError: the library that runs the graphs is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}")
    if (folder / MANIFEST).exists() and not (folder / EXPORTED).exists():
        raise UsageError(f"{folder} is an artifact; make graphs of it first: d4c export {folder}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads are counted from 1; not {threads}")
    exported = read_exported(folder)
    if exported.runtime == "open_clip":
        raise UsageError(f"{folder}: weights for open_clip, no graphs; export with another --layout")
    check_settings(folder, exported)
    check_files(folder, exported)
    preprocess, tokenizer = Preprocess.from_folder(folder), Tokenizer.from_folder(folder)
    size, length = preprocess.size, tokenizer.context_length if exported.fixed_length else None
    image = _open_tower(folder, exported, exported.image, storage, threads)
    check_graph(image.path, image.graph, image.about, "float32", (None, 3, size, size), exported.embed_dim)
    text = _open_tower(folder, exported, exported.text, storage, threads)
    check_graph(text.path, text.graph, text.about, exported.id_type, (None, length), exported.embed_dim)
    return GraphEncoder(exported, preprocess, tokenizer, image, text)


def _open_tower(
    folder: Path, exported: Exported, tower: ExportedTower, storage: str | None, threads: int | None
) -> Tower:
    if storage is not None and storage not in tower.files:
        raise UnknownNameError("storage", storage, tower.files)
    path = folder / (tower.file if storage is None else tower.files[storage])
    try:
        return Tower(path, tower, RUNTIMES[exported.runtime](path, threads))
    except (MissingExtraError, ExportError):
        raise
    except Exception as error:  # either library has exceptions of its own, which share no class
        raise ExportError(f"{path}: not a graph that {exported.runtime} can run: {_last_line(error)}") from error


def _trimmed(ids: NDArray[Any]) -> NDArray[Any]:
    """[text, token] without the columns that lie behind every text's end."""
    return np.ascontiguousarray(ids[:, : int(ids.argmax(axis=1).max()) + 1])


def _last_line(error: Exception) -> str:
    """What an error says after the places that it was passed through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
