"""What quantization lost, from names and folders to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d4c import evaluate, synthesize
from d4c.artifact import Work, user_cache
from d4c.artifact.work import Report
from d4c.errors import UsageError
from d4c.inputs import Encoder
from d4c.models import Clip, TorchEncoder, load
from d4c.pipeline.basis import held_out_tokens
from d4c.pipeline.encoders import UnitEncoder, open_encoder
from d4c.pipeline.origin import float_model, prompts_of
from d4c.pipeline.places import resolve_device
from d4c.pipeline.quantization import environment
from d4c.pipeline.stages import hash_of
from d4c.runtime import GraphEncoder


def evaluate_without_data(folder: str, *, against: str | None, device: str, report: Report) -> dict[str, Any]:
    """Compare an artifact or its export with the float model on images and texts that nothing was calibrated on.

    Embeddings of an export that have length 1 are compared with the float model's, given length 1 too.

    Args:
        folder: of an artifact, or exported; against: the float model, by default what the folder was made from.

    Raises:
        UsageError: `folder` is none, or the float model is another one.
    """
    if not Path(folder).is_dir():
        raise UsageError(f"{folder}: not an artifact or export; to evaluate a float model, name a set with --dataset")
    quantized = open_encoder(folder, device=device)
    clip = float_model(Path(folder), against, device)
    bank, held_bank = prompts_of(Path(folder))
    sets = synthesize.held_out_sets(clip, held_bank.prompts, user_cache(), Work(None, report))
    reference: Encoder = TorchEncoder(clip)
    if isinstance(quantized, GraphEncoder) and quantized.exported.normalized:
        reference = UnitEncoder(reference)
    return evaluate.evaluate_without_data(
        reference,
        quantized,
        {name: s.pixels.numpy() for name, s in sets.items()},
        clip.tokenizer((*bank.prompts, *held_bank.prompts)),
        held_out_tokens(clip, held_bank).numpy(),
    )


def evaluate_on_data(
    model: str,
    dataset: str,
    root: Path | None,
    *,
    pretrained: str | None,
    against: str | None,
    device: str,
    report: Report,
    split: str = "test",
    recall_k: Sequence[int] = (5,),
) -> dict[str, Any]:
    """Measure zero-shot accuracy, or recall on a set of captions; folders are measured beside their float model.

    Args:
        split: as CLIP_benchmark has it; recall_k: for captions, how many candidates may be looked at.

    Returns:
        `results`: CLIP_benchmark's records, and for an artifact or export `paired`: the differences with their standard
        errors.

    Raises:
        UsageError: no root, or the float model is another one than the folder's.
    """
    if root is None:
        raise UsageError(f"--dataset {dataset} needs --root, the folder where the data is")
    folder = Path(model) if Path(model).is_dir() else None
    clip = float_model(folder, against, device) if folder else load(model, pretrained).to(resolve_device(device))
    encoders: dict[str, Encoder] = {"float": TorchEncoder(clip)}
    if folder:
        encoders["quantized"] = open_encoder(model, device=device)
    task = evaluate.load_task(dataset, root, clip.preprocess, split, report=report)
    metrics, changed = _measure(task, encoders, {"float": embedding_cache(clip)}, recall_k, report)
    names = {"float": clip.source, "quantized": model}
    results = [evaluate.result_json(task, names[kind], values) for kind, values in metrics.items()]
    return {"results": results} | ({"paired": changed} if changed else {})


def embedding_cache(clip: Clip) -> evaluate.EmbeddingCache:
    """Where embeddings of a float model lie in the user's cache."""
    return evaluate.EmbeddingCache(user_cache() / "embeddings" / hash_of(*environment(clip))[:24])


def _measure(
    task: evaluate.Task,
    encoders: Mapping[str, Encoder],
    caches: Mapping[str, evaluate.EmbeddingCache],
    recall_k: Sequence[int],
    report: Report,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Metrics by encoder, and what changed from "float" to "quantized" where both are there."""
    both = len(encoders) == 2
    if isinstance(task, evaluate.ImageTask):
        predictions = evaluate.classify(encoders, task, report, caches=caches)
        changed = evaluate.paired(predictions["float"], predictions["quantized"]) if both else {}
        return {kind: prediction.metrics for kind, prediction in predictions.items()}, changed
    found = evaluate.retrieve(encoders, task, report, caches=caches)
    changed = evaluate.paired_retrieval(found["float"], found["quantized"], recall_k) if both else {}
    return {kind: retrieval.metrics(recall_k) for kind, retrieval in found.items()}, changed
