"""Finding images by their captions and captions by their image, with CLIP_benchmark's metrics and JSON keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.work import Report
from d4c.errors import RunError
from d4c.evaluate.agreement import unit
from d4c.evaluate.differences import paired_difference
from d4c.evaluate.embedding_cache import EmbeddingCache
from d4c.evaluate.tasks import CaptionTask
from d4c.inputs import Encoder

QUERIES_AT_ONCE = 256
Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Retrieval:
    """How many wrong candidates stand before the first right one.

    Args:
        image_ranks: for each caption, among the images, [text].
        text_ranks: for each image, among the captions, [image]; any of its own is right.
        text_image: the image that each caption belongs to, [text].
    """

    image_ranks: Numbers
    text_ranks: Numbers
    text_image: Numbers

    def hits(self, k: int) -> dict[str, NDArray[np.bool_]]:
        """Whether a right one is among the first k, or among all where there are fewer, by metric."""
        return {
            f"image_retrieval_recall@{k}": self.image_ranks < min(k, len(self.text_ranks)),
            f"text_retrieval_recall@{k}": self.text_ranks < min(k, len(self.image_ranks)),
        }

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """`image_retrieval_recall@k` and `text_retrieval_recall@k` for each k, as fractions."""
        return {name: float(hit.mean()) for k in ks for name, hit in self.hits(k).items()}


def retrieve(
    encoders: Mapping[str, Encoder],
    task: CaptionTask,
    report: Report,
    batch: int = 64,
    *,
    caches: Mapping[str, EmbeddingCache] | None = None,
) -> dict[str, Retrieval]:
    """Compare every caption with every image, with every encoder, in one pass over the set.

    Args:
        encoders: by name; they share preprocessing and tokenizer.
        caches: by the names of encoders whose embeddings are kept between runs.

    Raises:
        RunError: an image cannot be read, or there are no images or captions.
    """
    images: dict[str, list[Array]] = {name: [] for name in encoders}
    texts: dict[str, list[Array]] = {name: [] for name in encoders}
    owners: list[int] = []
    seen = 0
    for pixels, captions in task.batches(batch):
        lines = [line for of_image in captions for line in of_image]
        owners += [seen + i for i, of_image in enumerate(captions) for _ in of_image]
        for name, encoder in encoders.items():
            cache = (caches or {}).get(name) or EmbeddingCache()
            images[name].append(cache.encode_image(encoder, pixels))
            if lines:
                texts[name].append(cache.encode_text(encoder, encoder.tokenizer(lines)))
        seen += len(captions)
        report("encode images", seen, task.size)
    if not owners:
        raise RunError(f"{task.name}: the set is empty")
    text_image = np.array(owners, np.int64)
    return {name: ranked(np.concatenate(images[name]), np.concatenate(texts[name]), text_image) for name in encoders}


def ranked(images: Array, texts: Array, text_image: Numbers) -> Retrieval:
    """Rank by cosine, both ways.

    Args:
        images: [image, embedding]; texts: [text, embedding]; not normalised.
        text_image: the image that each text belongs to, [text].
    """
    image, text, image_number = unit(images), unit(texts), np.arange(len(images))
    return Retrieval(
        _ranks(text, image, text_image, image_number), _ranks(image, text, image_number, text_image), text_image
    )


def first_hits(scores: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> Numbers:
    """The place of the best right candidate of each query, 0 the first; equal scores stand in the candidates' order.

    Args:
        scores: [query, candidate]; a query whose best right score is NaN finds nothing.
        right: [query, candidate].

    Returns:
        [query]; the number of candidates where none is right.
    """
    ours = np.where(right, scores, -np.inf)
    first = ours.argmax(axis=1)[:, None]  # [query, 1]; of a NaN its place
    best = np.take_along_axis(ours, first, axis=1)
    above = ~(scores <= best)  # a NaN stands above all
    tied = (scores == best) & (np.arange(scores.shape[1]) < first)
    return np.asarray((above | tied).sum(axis=1), np.int64)


def paired_retrieval(reference: Retrieval, changed: Retrieval, ks: Sequence[int]) -> dict[str, float]:
    """What changed against a reference on the same queries.

    Returns:
        for each metric `METRIC_difference`, `METRIC_standard_error`, for which the captions of one image count as one
        draw, and `METRIC_changed_hits`, the share of queries that found and no longer find or the other way round.
    """
    found: dict[str, float] = {}
    for k in ks:
        after_by_name = changed.hits(k)
        for name, before in reference.hits(k).items():
            group = reference.text_image if name.startswith("image") else None
            difference, error = paired_difference(before, after_by_name[name], group)
            found |= {
                f"{name}_difference": difference,
                f"{name}_standard_error": error,
                f"{name}_changed_hits": float((before != after_by_name[name]).mean()),
            }
    return found


def _ranks(queries: Array, candidates: Array, owner: Numbers, candidate_owner: Numbers) -> Numbers:
    """`first_hits` of some queries at a time, so that the scores of a large set need not fit at once."""
    parts = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        some = slice(start, start + QUERIES_AT_ONCE)
        right = owner[some, None] == candidate_owner[None]  # [query, candidate]
        parts.append(first_hits(queries[some] @ candidates.T, right))
    return np.concatenate(parts)
