"""An exported folder against the artifact it was translated from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from d4c import synthesize
from d4c.artifact import Artifact, Work, read_artifact, user_cache
from d4c.artifact.exported import FLOAT_RECIPE, Exported, Storage
from d4c.artifact.work import Report
from d4c.errors import D4CError, UnsupportedModelError, UsageError
from d4c.export.checks import Row
from d4c.export.checks.agreement import Embeddings, best_text_row, company_row, embedding_row
from d4c.export.source import Source, source_of
from d4c.export.verify import check_combined, check_tower
from d4c.images import ImageSet, procedural_set
from d4c.inputs import Preprocess
from d4c.models import TorchEncoder, load
from d4c.package import thaw, thaw_integers
from d4c.pipeline.places import KEPT_IMAGES, work_folder_of
from d4c.prompts import parse_prompts
from d4c.runtime.encoder import GraphEncoder, open_encoder

SEED, NUM_PROCEDURAL, NUM_INNER, BATCH = 424_242, 32, 4, 8
PLAIN_TEXTS = ("a photo of a dog", "a red car in the street", "two people who walk along a beach at sunset", "tree")


@dataclass(frozen=True)
class Verification:
    """The table of `d4c verify`."""

    rows: list[Row]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(row.passed is not False for row in self.rows)


@dataclass(frozen=True)
class _Given:
    """What both sides are run on.

    Args:
        images: pixels [image, 3, size, size] by set; ids: [text, context] int64.
    """

    images: dict[str, NDArray[np.float32]]
    ids: NDArray[np.int64]


def verify(folder: Path, artifact: Path | None, threads: int | None, report: Report) -> Verification:
    """Check structure and, where the artifact is at hand, every number.

    Args:
        artifact: by default where d4c.json says that it lay, if it is there still.

    Raises:
        ExportError: the folder is broken, or a graph does not run.
        UsageError: `artifact` is another one than the folder was made from, or the folder has no graphs.
    """
    encoder = open_encoder(folder, threads=threads)
    exported = encoder.exported
    found = _artifact(folder, exported, artifact)
    rows = []
    if exported.recipe == FLOAT_RECIPE:
        rows.append(Row("artifact", "none: a float model, of which structure alone is checked", None))
    elif found is None:
        rows.append(Row("artifact", "not at hand: structure alone is checked; name it with --artifact", None))
    given = _plain(encoder) if found is None else _given(found, report)
    source = source_of(found) if found is not None else None
    for done, storage in enumerate(exported.image.files):
        report("check graphs", done, len(exported.image.files))
        rows += _structure(folder, encoder, cast(Storage, storage), given, source)
    if found is not None:
        sides = _simulate(found, given, report)
        for storage in exported.image.files:
            opened = dataclasses.replace(open_encoder(folder, storage, threads), batch=BATCH)
            rows += _numbers(storage, opened, sides, given, report)
    return Verification(rows)


def _structure(
    folder: Path, encoder: GraphEncoder, storage: Storage, given: _Given, source: Source | None
) -> list[Row]:
    exported = encoder.exported
    pixels = np.concatenate([images[:1] for images in given.images.values()])[:NUM_INNER]
    ids = given.ids[:NUM_INNER].astype(exported.id_type)
    return [
        *check_tower(folder, exported, "image", storage, pixels, source),
        *check_tower(folder, exported, "text", storage, ids, source),
        *check_combined(folder, exported, storage, pixels, ids),
    ]


@dataclass(frozen=True)
class _Simulations:
    """Embeddings of the artifact in whole numbers, and in float32 sums: by set, and of the texts."""

    whole: dict[str, Embeddings]
    float32: dict[str, Embeddings]


def _simulate(artifact: Artifact, given: _Given, report: Report) -> _Simulations:
    """Run the artifact in torch, twice."""
    sides = []
    for done, model in enumerate((thaw_integers(artifact), thaw(artifact))):
        report("simulate", done, 2)
        encoder = TorchEncoder(model, BATCH)
        texts = encoder.encode_text(given.ids)
        sides.append({name: Embeddings(encoder.encode_image(x), texts) for name, x in given.images.items()})
    return _Simulations(*sides)


def _numbers(
    storage: str, encoder: GraphEncoder, simulations: _Simulations, given: _Given, report: Report
) -> list[Row]:
    """Embeddings, best texts, and what company changes."""
    exported = encoder.exported
    suffix = f", {storage}" if len(exported.image.files) > 1 else ""
    texts, first = encoder.encode_text(given.ids), next(iter(given.images))
    expected, second = (side[first].texts for side in (simulations.whole, simulations.float32))
    rows = [embedding_row(f"texts{suffix}", texts, expected, second, exported.runtime)]
    for done, (name, pixels) in enumerate(given.images.items()):
        report("compare embeddings", done, len(given.images))
        found, whole = Embeddings(encoder.encode_image(pixels), texts), simulations.whole[name]
        float32 = simulations.float32[name].images
        rows.append(embedding_row(f"images {name}{suffix}", found.images, whole.images, float32, exported.runtime))
        rows.append(best_text_row(f"best text, {name}{suffix}", found, whole, exported.logit_scale))
    alone, some = dataclasses.replace(encoder, batch=1), given.images[first][:BATCH]
    images = company_row(f"image alone and in {BATCH}{suffix}", alone.encode_image(some), encoder.encode_image(some))
    ids = given.ids[:BATCH]  # alone each is as short as it can be, together as long as the longest
    return [
        *rows,
        images,
        company_row(f"text alone and in {BATCH}{suffix}", alone.encode_text(ids), encoder.encode_text(ids)),
    ]


def _artifact(folder: Path, exported: Exported, given: Path | None) -> Artifact | None:
    """The artifact of an exported folder, verified, or None where it is not at hand."""
    path = given or (Path(exported.artifact) if exported.artifact is not None else None)
    if path is None or (given is None and not (path / "manifest.json").is_file()):
        return None
    artifact = read_artifact(path)
    if artifact.manifest["content_sha256"] == exported.content_sha256:
        return artifact
    if given is None:
        return None
    raise UsageError(f"{given}: not the artifact that {folder} was made from, its content_sha256 differs")


def _given(artifact: Artifact, report: Report) -> _Given:
    """Calibration images where they were kept, the held-out sets, and every prompt."""
    prompts = [
        parse_prompts(artifact.manifest["prompts"][kind], str(artifact.folder)) for kind in ("fitted", "held_out")
    ]
    ids = artifact.tokenizer([text for bank in prompts for text in bank.prompts])
    images = {}
    kept = work_folder_of(artifact.folder.absolute()) / KEPT_IMAGES
    if kept.is_file():
        images["calibration"] = ImageSet.load(kept).pixels.numpy()
    try:
        clip = load(artifact.manifest["source"])
        if clip.fingerprint != artifact.manifest["fingerprint"]:  # another model lies there now
            raise UnsupportedModelError(f"{artifact.manifest['source']} is not what the artifact was made from")
        held = synthesize.held_out_sets(clip, prompts[1].prompts, user_cache(), Work(None, report))
        images |= {name: held[name].pixels.numpy() for name in ("synthetic", "one_over_f")}
    except D4CError:  # the float model is not at hand; procedural images need none
        images |= _procedural(artifact.preprocess)
    return _Given(images, ids)


def _plain(encoder: GraphEncoder) -> _Given:
    return _Given(_procedural(encoder.preprocess), encoder.tokenizer(PLAIN_TEXTS))


def _procedural(preprocess: Preprocess) -> dict[str, NDArray[np.float32]]:
    with torch.no_grad():
        return {
            name: procedural_set(name, NUM_PROCEDURAL, preprocess, SEED + i).pixels.numpy()
            for i, name in enumerate(("one_over_f", "dead_leaves"))
        }
