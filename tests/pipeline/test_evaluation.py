import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import d4c
from d4c import pipeline
from d4c.models import QuantizedClip, TorchEncoder
from evaluate.painter import COLOURS, flat, silent, write_set

# webdataset leaves its shards to the garbage collector to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What webdataset left open is closed while its warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sets of six pictures, one with classes and one with captions."""
    pictures = [flat(colour, (40 + i, 33)) for i, colour in enumerate(COLOURS.values())]
    write_set(tmp_path / "data" / "wds_colours", [(p, str(i)) for i, p in enumerate(pictures)])
    captions = [f"a {name} thing\nall is {name}" for name in COLOURS]
    write_set(
        tmp_path / "data" / "wds_said", list(zip(pictures, captions, strict=True)), label="txt", names=None,
        templates=None, kind="retrieval",
    )  # fmt: skip
    return tmp_path / "data"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked to encode what from here on."""
    calls: list[str] = []
    for tower in ("encode_image", "encode_text"):
        whole = getattr(TorchEncoder, tower)

        def counted(self: TorchEncoder, x: NDArray[Any], whole: Any = whole, tower: str = tower) -> Any:
            calls.append(f"{'quantized' if isinstance(self.clip, QuantizedClip) else 'float'} {tower}")
            return whole(self, x)

        monkeypatch.setattr(TorchEncoder, tower, counted)
    return calls


def artifact(model: str, out: Path, recipe: str = "w4a8") -> str:
    overrides = ("synthesize.images=2", "reconstruct.method=none", "calibrate.texts=8")
    d4c.quantize(model, recipe=recipe, out=out, images="noise", device="cpu", overrides=overrides)
    return str(out)


def measured(model: str, dataset: str, root: Path, **arguments: Any) -> dict[str, Any]:
    return pipeline.evaluate_on_data(
        model, dataset, root, pretrained=None, against=None, device="cpu", report=silent, **arguments
    )


CLASSES = {"acc1", "acc5", "mean_per_class_recall"}
RECALLS = {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 3)}


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_an_artifact_stands_beside_its_float_model_which_is_computed_once(
    kind: str, encoded: list[str], request: pytest.FixtureRequest, root: Path, tmp_path: Path
) -> None:
    model = f"local-dir:{request.getfixturevalue(f'{kind}_folder')}"
    folder = artifact(model, tmp_path / "a")
    for dataset, keys in (("wds/colours", CLASSES), ("wds/said", RECALLS)):
        encoded.clear()
        alone = measured(model, dataset, root, recall_k=[1, 3])
        assert {call.split()[0] for call in encoded} == {"float"}
        assert set(alone["results"][0]["metrics"]) == keys
        encoded.clear()
        beside = measured(folder, dataset, root, recall_k=[1, 3])
        assert {call.split()[0] for call in encoded} == {"quantized"}  # the artifact's own forward, nothing else
        assert beside["results"][0] == alone["results"][0]
        assert (beside["results"][0]["model"], beside["results"][1]["model"]) == (model, folder)
        assert set(beside["results"][1]["metrics"]) == keys
        for metric in keys - {"acc5", "mean_per_class_recall"}:
            before, after = (r["metrics"][metric] for r in beside["results"])
            assert beside["paired"][f"{metric}_difference"] == pytest.approx(after - before)


def test_another_model_and_other_threads_are_computed_anew(
    vit_folder: Path, resnet_folder: Path, encoded: list[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(f"local-dir:{vit_folder}", "wds/colours", root)
    for model, threads in ((resnet_folder, 1), (vit_folder, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        encoded.clear()
        measured(f"local-dir:{model}", "wds/colours", root)
        assert encoded.count("float encode_image") == 1
        assert encoded.count("float encode_text") == len(COLOURS)


def test_embeddings_lie_in_the_users_cache(
    vit_folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D4C_CACHE", str(tmp_path / "mine"))
    measured(f"local-dir:{vit_folder}", "wds/colours", root)
    (folder,) = (tmp_path / "mine" / "embeddings").iterdir()
    assert sorted(p.name.split("-")[0] for p in folder.iterdir()) == ["classifier", "images"]


def test_an_artifact_may_lie_in_a_folder_called_like_its_model(
    vit_folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = f"local-dir:{vit_folder}"
    artifact(source, tmp_path / "out", "w2a3")
    monkeypatch.setattr("d4c.pipeline.origin.load", lambda *_: _renamed(d4c.load(source), "out"))
    found = measured("out", "wds/colours", root)
    assert [r["model"] for r in found["results"]] == ["out", "out"]
    assert np.isfinite(found["paired"]["acc1_standard_error"])


def _renamed(clip: d4c.Clip, source: str) -> d4c.Clip:
    clip.source = source
    return clip
