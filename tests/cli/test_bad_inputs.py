"""Each bad input: one line on stderr, its exit code, nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import d4c

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., None]:
    """Run and check that it ends with this code, one line that holds these words, and no new file."""

    def check(code: int, words: str, *arguments: object) -> None:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        ended, out, err = run(*arguments)
        assert (ended, out) == (code, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert words in err
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before

    return check


Refused = Callable[..., None]


def test_unknown_model(refused: Refused) -> None:
    refused(2, "did you mean 'ViT-B/32'?", "quantize", "VitB/32")
    refused(2, "unknown tag", "quantize", "ViT-B-32__lion2b")


def test_unknown_recipe(refused: Refused, vit_folder: Path) -> None:
    refused(2, "did you mean 'w4a8'?", "quantize", f"local-dir:{vit_folder}", "--recipe", "w4a9")


def test_unknown_recipe_key(refused: Refused, vit_folder: Path) -> None:
    refused(2, "images", "quantize", f"local-dir:{vit_folder}", "--set", "synthesize.imagse=3")


def test_broken_toml(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("deployable = \n[[rule]")
    refused(2, "recipe my: not TOML", "quantize", f"local-dir:{vit_folder}", "--recipe", "my.toml")


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_are_not_possible(refused: Refused, vit_folder: Path, tmp_path: Path, bits: int) -> None:
    (tmp_path / "my.toml").write_text(
        f'deployable = true\n[[rule]]\nmatch = "*"\nweight_bits = {bits}\nactivation_bits = 8\n'
    )
    refused(2, f"{bits}", "quantize", f"local-dir:{vit_folder}", "--recipe", "my.toml")


def test_missing_folder(refused: Refused) -> None:
    refused(2, "no such folder", "quantize", "local-dir:nowhere")
    refused(2, "nowhere", "evaluate", "nowhere")


def test_data_sets_that_are_not_there(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    model = f"local-dir:{vit_folder}"
    refused(2, "needs --root", "evaluate", model, "--dataset", "cifar10")
    refused(2, "no such folder", "evaluate", model, "--dataset", "cifar10", "--root", "nowhere")
    for name, words in (
        ("cifar10", "expected the folder cifar-10-batches-py or cifar-10-python.tar.gz"),
        ("cifar100", "expected the folder cifar-100-python or cifar-100-python.tar.gz"),
        ("imagenet1k", "expected val/WNID/*.JPEG, or ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_val.tar"),
        ("flickr8k", "expected flickr8k_test_karpathy.txt"),
        ("wds/x", "looked for x and wds_x"),
        ("cifar1", "did you mean 'cifar10'?"),
    ):
        refused(2, words, "evaluate", model, "--dataset", name, "--root", "data")


@pytest.mark.parametrize("numbers", ["0", "-1", "", "1,,5", "five", "1.5"])
def test_recalls_that_are_no_numbers(numbers: str, refused: Refused) -> None:
    refused(2, "--recall-k takes whole numbers", "evaluate", "tiny", f"--recall-k={numbers}")


def test_truncated_safetensors(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(vit_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(1, "open_clip_model.safetensors", "quantize", "local-dir:cut")


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_would_execute_code(refused: Refused, tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pt")
    refused(1, "bomb.pt", "quantize", "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_one_flipped_byte_in_an_artifact(refused: Refused, run: Run, vit_folder: Path, tmp_path: Path) -> None:
    small = [x for o in ("images=2", "steps=1") for x in ("--set", f"synthesize.{o}")]
    arguments = ["quantize", f"local-dir:{vit_folder}", "--out", "a", *small]
    assert run(*arguments)[0] == 0
    path = tmp_path / "a" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for command in ("inspect", "evaluate"):
        refused(1, "model.safetensors is damaged", command, "a")


def test_prompts_without_a_place_for_the_name(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"classnames": ["cat"], "templates": ["a photo"]}))
    refused(2, "{c}", "quantize", f"local-dir:{vit_folder}", "--prompts", "p.json")


def test_output_that_cannot_be_written(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(2, "cannot write", "quantize", f"local-dir:{vit_folder}", "--out", "file/out")
    refused(2, "cannot write", "quantize", f"local-dir:{vit_folder}", "--out", "file")


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_output_without_a_name_of_its_own(place: str, refused: Refused, vit_folder: Path) -> None:
    model = f"local-dir:{vit_folder}"
    refused(2, "name the folder to be made", "quantize", model, "--images", "noise", "--out", place)
    refused(2, "name the folder to be made", "synthesize", model, "--out", place)
    refused(2, "name the folder to be made", "export", model, "--layout", "onnx", "--out", place)


def test_weights_that_are_not_finite(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(vit_folder, tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] = np.nan
    save_file(weights, tmp_path / "nan" / "open_clip_model.safetensors")
    refused(1, "image.patch_embedding.weight holds values that are not finite", "quantize", "local-dir:nan")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(refused: Refused, vit_folder: Path) -> None:
    refused(2, "there is no cuda device here", "quantize", f"local-dir:{vit_folder}", "--device", "cuda")


def test_image_folders_without_images(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("not a picture")
    refused(1, "empty", "quantize", f"local-dir:{vit_folder}", "--images", "empty")
    refused(1, "a.png", "quantize", f"local-dir:{vit_folder}", "--images", "texts")
    refused(2, "nowhere", "quantize", f"local-dir:{vit_folder}", "--images", "nowhere")


def test_other_settings_over_a_finished_artifact(refused: Refused, run: Run, vit_folder: Path) -> None:
    arguments = ["quantize", f"local-dir:{vit_folder}", "--out", "a", "--images", "noise"]
    arguments += ["--set", "synthesize.images=2", "--set", "reconstruct.method=none"]
    assert run(*arguments)[0] == 0
    refused(2, "--fresh", *arguments, "--seed", "1")


def test_a_setting_that_no_integer_kernel_honours(refused: Refused, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(
        'deployable = true\n[[rule]]\nmatch = "*"\nweight_bits = 4\nactivation_bits = 5\n'
    )
    refused(2, "5", "quantize", f"local-dir:{vit_folder}", "--recipe", "my.toml")


def test_arguments_that_do_not_exist(refused: Refused) -> None:
    refused(2, "--colour", "quantize", "tiny", "--colour", "blue")
    refused(2, "quantise", "quantise", "tiny")


def test_errors_of_the_library_are_the_same(tmp_path: Path) -> None:
    with pytest.raises(d4c.UnknownNameError, match="did you mean"):
        d4c.quantize("tiny-rm", out=tmp_path / "out")
