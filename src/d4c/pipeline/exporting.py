"""An artifact or a float model to an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from d4c import export
from d4c.artifact import Artifact, Exported, read_artifact
from d4c.artifact.exported import Storage
from d4c.errors import ArtifactError
from d4c.models import Clip, load
from d4c.models.folding import fold_batchnorm
from d4c.pipeline.places import check_writable


def export_model(
    model: str,
    layout: str,
    *,
    pretrained: str | None = None,
    out: str | Path | None = None,
    storage: Storage | None = None,
    fresh: bool = False,
) -> tuple[Exported, Path]:
    """Write an artifact, or a float model, in a layout.

    Args:
        model: an artifact folder, or any spelling of a float model that `load` takes; pretrained: open_clip's tag.
        out: by default MODEL-LAYOUT; storage, fresh: as in `d4c.export.run`.

    Returns:
        what d4c.json says, and the folder.

    Raises:
        D4CError: see `d4c.export.run`, `read_artifact` and `load`.
    """
    chosen = export.find_layout(layout)
    folder = Path(out) if out is not None else default_folder(model, layout)
    check_writable(folder)
    export.check_place(folder, fresh=fresh)
    figures = None
    if Path(model).is_dir():
        artifact = read_artifact(Path(model))
        source = export.dequantized(artifact) if chosen.float_weights else export.source_of(artifact)
        figures = _figures(artifact)
    else:
        source = float_source(load(model, pretrained))
    exported = export.run(source, layout, folder, storage=storage, figures=figures, fresh=fresh)
    return exported, folder


def default_folder(model: str, layout: str) -> Path:
    """An artifact's own path, or a float model's name with slashes as dashes, then the layout."""
    folder = Path(model)
    if folder.is_dir():
        named = folder.resolve() if folder.name in ("", "..") else folder
        return named.with_name(f"{named.name}-{layout}")
    return Path(f"{model.replace('/', '-').replace(':', '-')}-{layout}")


def float_source(clip: Clip) -> export.Source:
    """A float model in the words of an artifact, its BatchNorms folded; its fingerprint is that of the model given."""
    folded = fold_batchnorm(clip)
    arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in folded.state_dict().items()}
    return export.Source(
        folded.config, arrays, {}, {}, clip.preprocess, clip.tokenizer, clip.source, clip.fingerprint
    )  # fmt: skip


def _figures(artifact: Artifact) -> dict[str, Any]:
    try:
        figures: dict[str, Any] = json.loads((artifact.folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{artifact.folder}: report.json cannot be read: {error}") from error
    return figures
