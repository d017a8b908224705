"""What quantization lost, from names and folders to figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d4c import evaluate, synthesize
from d4c.artifact import Work, read_manifest
from d4c.artifact.work import Report
from d4c.errors import UsageError
from d4c.models import Clip, TorchEncoder, load
from d4c.pipeline.places import resolve_device
from d4c.pipeline.quantization import held_out_tokens, load_quantized, open_encoder
from d4c.prompts import parse_prompts


def evaluate_without_data(artifact: str, *, against: str | None, device: str, report: Report) -> dict[str, Any]:
    """Compare an artifact with its float model on images and texts that nothing was calibrated on.

    Args:
        against: the float model; by default what the artifact was made from.

    Raises:
        UsageError: `artifact` is not a folder, or the float model is another one.
    """
    if not Path(artifact).is_dir():
        raise UsageError(f"{artifact}: not an artifact folder; to evaluate a float model, name a set with --dataset")
    quantized = load_quantized(artifact, device=device)
    clip = _float_model(Path(artifact), against, device)
    prompts = read_manifest(Path(artifact))["prompts"]
    bank, held_bank = (parse_prompts(prompts[kind], artifact) for kind in ("fitted", "held_out"))
    sets = synthesize.held_out_sets(clip, held_bank.prompts, synthesize.user_cache(), Work(None, report))
    return evaluate.evaluate_without_data(
        TorchEncoder(clip),
        TorchEncoder(quantized),
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
) -> dict[str, Any]:
    """Measure zero-shot accuracy; an artifact is measured beside its float model.

    Returns:
        `results`: CLIP_benchmark's records, and for an artifact `paired`: the difference with its standard error.

    Raises:
        UsageError: no root, or the float model is another one than the artifact's.
    """
    if root is None:
        raise UsageError(f"--dataset {dataset} needs --root, the folder where the data is")
    encoder = open_encoder(model, pretrained, device)
    task = evaluate.load_task(dataset, root, encoder.preprocess)
    if not Path(model).is_dir():
        prediction = evaluate.classify({"float": encoder}, task, report)["float"]
        return {"results": [evaluate.result_json(task, model, prediction.metrics)]}
    reference = TorchEncoder(_float_model(Path(model), against, device))
    predictions = evaluate.classify({"float": reference, "quantized": encoder}, task, report)
    return {
        "results": [
            evaluate.result_json(task, name, predictions[kind].metrics)
            for kind, name in (("float", reference.clip.source), ("quantized", model))
        ],
        "paired": evaluate.paired(predictions["float"], predictions["quantized"]),
    }


def _float_model(artifact: Path, against: str | None, device: str) -> Clip:
    manifest = read_manifest(artifact)
    clip = load(against or manifest["source"]).to(resolve_device(device))
    if clip.fingerprint != manifest["fingerprint"]:
        raise UsageError(f"{clip.source} is not the model that {artifact} was made from; name it with --against")
    return clip
