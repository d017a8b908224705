"""Exported folders where artifacts may stand: their graphs are measured, beside the same float model."""

import dataclasses
import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import d4c
from d4c import pipeline
from d4c.artifact import Exported, ExportedTower, read_artifact, read_manifest
from d4c.artifact.exported import FLOAT_RECIPE
from d4c.errors import UsageError
from d4c.export.source import Source, source_of
from d4c.export.towers import image_graph, text_graph
from d4c.runtime import GraphEncoder
from evaluate.painter import COLOURS, flat, silent, write_set
from runtime.small_graphs import describe

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What webdataset left open is closed while its warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def artifact(vit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT at W8A8; tests must not change it."""
    out = tmp_path_factory.mktemp("artifacts") / "a"
    overrides = ("synthesize.images=4", "reconstruct.method=none", "calibrate.texts=8")
    prompts = out.with_name("prompts.json")
    prompts.write_text(json.dumps({"classnames": ["fir", "oak", "elm", "yew"], "templates": ["a {c}"]}))
    d4c.quantize(
        f"local-dir:{vit_folder}", recipe="w8a8", out=out, images="noise", device="cpu", overrides=overrides,
        prompts=prompts,
    )  # fmt: skip
    return out


def export(source: Source, out: Path, *, normalized: bool = False) -> Path:
    """Both graphs for onnxruntime."""
    out.mkdir()
    source.preprocess.save(out)
    source.tokenizer.save(out)
    storage = "float" if source.recipe == FLOAT_RECIPE else "int8"
    onnx.save(image_graph(source, storage=storage, normalize=normalized), out / "image.onnx")
    onnx.save(text_graph(source, storage=storage, normalize=normalized), out / "text.onnx")
    return describe(out, Exported(
        layout="onnx", runtime="onnxruntime",
        image=ExportedTower({storage: "image.onnx"}, "pixel_values", "image_embeds"),
        text=ExportedTower({storage: "text.onnx"}, "input_ids", "text_embeds"),
        id_type="int64", fixed_length=False, normalized=normalized, embed_dim=source.config.embed_dim,
        logit_scale=source.logit_scale, logit_bias=source.logit_bias, template="a photo of a {c}.",
        source=source.name, fingerprint=source.fingerprint, recipe=source.recipe,
        content_sha256=source.content_sha256, artifact=source.folder, sha256={},
    ))  # fmt: skip


def float_source(clip: d4c.Clip) -> Source:
    arrays = {name: tensor.numpy() for name, tensor in clip.state_dict().items()}
    return Source(clip.config, arrays, {}, {}, clip.preprocess, clip.tokenizer, clip.source, clip.fingerprint)


def judged(folder: Path, **arguments: Any) -> dict[str, Any]:
    given = {"against": None, "device": "cpu", "report": silent, **arguments}
    return pipeline.evaluate_without_data(str(folder), **given)


def measured(model: Path, dataset: str, root: Path) -> dict[str, Any]:
    return pipeline.evaluate_on_data(
        str(model), dataset, root, pretrained=None, against=None, device="cpu", report=silent, recall_k=[1, 3]
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pictures with classes, and the same with captions."""
    pictures = [flat(colour, (40 + i, 33)) for i, colour in enumerate(COLOURS.values())]
    write_set(tmp_path / "data" / "wds_colours", [(p, str(i)) for i, p in enumerate(pictures)])
    captions = [f"a {name} thing\nall is {name}" for name in COLOURS]
    write_set(
        tmp_path / "data" / "wds_said", list(zip(pictures, captions, strict=True)), label="txt", names=None,
        templates=None, kind="retrieval",
    )  # fmt: skip
    return tmp_path / "data"


def test_an_exported_graph_has_the_figures_of_its_artifact(artifact: Path, tmp_path: Path, root: Path) -> None:
    folder = export(source_of(read_artifact(artifact)), tmp_path / "e")
    assert isinstance(pipeline.open_encoder(str(folder)), GraphEncoder)
    expected, found = judged(artifact), judged(folder)
    assert found["sets"].keys() == expected["sets"].keys()
    for key in ("image_centred_error", "text_centred_error"):  # a code here and there rounds to its neighbour
        assert found["worst"][key] == pytest.approx(expected["worst"][key], rel=0.05)
        assert 0 < found["worst"][key] < 0.2
    for dataset in ("wds/colours", "wds/said"):
        expected, found = measured(artifact, dataset, root), measured(folder, dataset, root)
        assert found["results"][0] == expected["results"][0]  # the float model
        assert found["results"][1]["model"] == str(folder)
        assert found["results"][1]["metrics"].keys() == expected["results"][1]["metrics"].keys()
        assert found["paired"].keys() == expected["paired"].keys()


def test_an_exported_float_model_has_lost_nothing(vit_folder: Path, tmp_path: Path, root: Path) -> None:
    folder = export(float_source(d4c.load(f"local-dir:{vit_folder}")), tmp_path / "e")
    worst = judged(folder)["worst"]
    assert 0 < worst["image_centred_error"] < 1e-4
    assert 0 < worst["text_centred_error"] < 1e-4
    assert [worst[key] for key in ("image_top1", "text_top1", "top1", "mixed_index")] == [1, 1, 1, 1]
    found = measured(folder, "wds/colours", root)
    assert found["paired"]["changed_predictions"] == 0
    assert found["results"][0]["metrics"]["acc1"] == found["results"][1]["metrics"]["acc1"]


def test_embeddings_of_length_1_are_compared_with_such(vit_folder: Path, artifact: Path, tmp_path: Path) -> None:
    clip = d4c.load(f"local-dir:{vit_folder}")
    worst = judged(export(float_source(clip), tmp_path / "f", normalized=True))["worst"]
    assert max(worst["image_centred_error"], worst["text_centred_error"]) < 1e-4
    source = source_of(read_artifact(artifact))
    plain, unit = judged(export(source, tmp_path / "p")), judged(export(source, tmp_path / "u", normalized=True))
    for name in plain["sets"]:  # cosines do not see lengths
        assert unit["sets"][name]["image"]["cosine_mean"] == pytest.approx(plain["sets"][name]["image"]["cosine_mean"])
        assert unit["sets"][name]["top1"] == plain["sets"][name]["top1"]


@pytest.fixture
def banks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The prompts that images which judge were drawn towards, in the order of the calls."""
    seen: list[tuple[str, ...]] = []
    whole = pipeline.evaluation.synthesize.held_out_sets

    def noted(clip: d4c.Clip, prompts: tuple[str, ...], *rest: Any) -> Any:
        seen.append(prompts)
        return whole(clip, prompts, *rest)

    monkeypatch.setattr("d4c.pipeline.evaluation.synthesize.held_out_sets", noted)
    return seen


def test_what_judges_an_export_are_its_artifacts_prompts_as_long_as_it_is_there(
    artifact: Path, tmp_path: Path, banks: list[tuple[str, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "d4c")
    held = read_manifest(artifact)["prompts"]["held_out"]["groups"]["held out"]
    assert held == ["yew"]
    source = source_of(read_artifact(artifact))
    judged(export(source, tmp_path / "e"))
    assert banks.pop() == ("a yew",)
    assert not caplog.records
    for name, change in (("gone", {"folder": str(tmp_path / "nowhere")}), ("another", {"content_sha256": "0" * 64})):
        judged(export(dataclasses.replace(source, **change), tmp_path / name))
        assert len(banks.pop()) > 20  # an eighth of the project's own
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        caplog.clear()


def test_nothing_warns_of_a_float_models_prompts(
    vit_folder: Path, tmp_path: Path, banks: list[tuple[str, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    judged(export(float_source(d4c.load(f"local-dir:{vit_folder}")), tmp_path / "e"))
    assert len(banks.pop()) > 20
    assert not caplog.records


def test_another_float_model_is_refused(artifact: Path, tmp_path: Path, resnet_folder: Path, root: Path) -> None:
    folder = export(source_of(read_artifact(artifact)), tmp_path / "e")
    with pytest.raises(UsageError, match=r"not the model that .* was made from; name it with --against"):
        judged(folder, against=f"local-dir:{resnet_folder}")
    about = json.loads((folder / "d4c.json").read_text())
    (folder / "d4c.json").write_text(json.dumps({**about, "source": f"local-dir:{resnet_folder}"}))
    with pytest.raises(UsageError, match="name it with --against"):
        measured(folder, "wds/colours", root)


def test_the_encoder_runs_with_as_many_threads_as_torch(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(source_of(read_artifact(artifact)), tmp_path / "e")
    given: list[Any] = []
    monkeypatch.setattr("d4c.runtime.open_encoder", lambda path, threads: given.append((path, threads)))
    pipeline.open_encoder(str(folder))
    assert given == [(str(folder), 1)]


def test_company_does_not_change_an_embedding(artifact: Path, tmp_path: Path) -> None:
    encoder = pipeline.open_encoder(str(export(source_of(read_artifact(artifact)), tmp_path / "e")))
    pixels = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    ids = encoder.tokenizer(["dog", "an old red car that stands in the rain in front of a house", "sky"])
    for values, encode in ((pixels, encoder.encode_image), (ids, encoder.encode_text)):
        together = encode(values)  # type: ignore[operator]
        alone = np.concatenate([encode(values[i : i + 1]) for i in range(len(values))])  # type: ignore[operator]
        np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)
