"""Every flag of the paper's list (method, section 5, last lines) changes what it should."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d4c.cli.main import main
from d4c.experiments.reproduce import PaperFlags, recipe_of, save_pictures
from d4c.images import ImageSet
from d4c.inputs import Preprocess
from d4c.recipes import load_recipe, parse_recipe

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
Run = Callable[..., str]
CONFIG = """
root: ROOT
calibrate: {visual: 4, text: 6}
recon: {visual_batch_size: 4, text_batch_size: 4, visual_scale_lr: 4.0e-5, text_scale_lr: 4.0e-6, warm_up: 0.2,
        weight: 0.01, iters: 3, b_range: [20, 2], keep_gpu: True, round_mode: learned_hard_sigmoid, drop_prob: 1.0}
"""
FAST = ("--gen_iter", "1", "--gen_batch_size", "4")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path) -> Run:
    """`d4c reproduce` on the small set, in a folder of its own: stdout and stderr."""
    from importlib import resources

    monkeypatch.chdir(tmp_path)
    shipped = Path(str(resources.files("d4c.recipes"))) / "paper" / "config48.yaml"
    (tmp_path / "config.yaml").write_text(CONFIG.replace("ROOT", str(shipped)))

    def call(*arguments: object, code: int = 0) -> str:
        common = [
            "--dataset",
            "wds/colours",
            "--dataset_root",
            str(data),
            "--q_config",
            "config.yaml",
            "--device",
            "cpu",
        ]
        monkeypatch.setattr("sys.argv", ["d4c", "reproduce", *common, *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        assert exit_.value.code == code, captured.err
        return captured.out + captured.err

    return call


def flags(**changes: Any) -> PaperFlags:
    """The defaults of the paper's program."""
    defaults: dict[str, Any] = {
        "dataset": "cifar10", "dataset_root": "root", "split": "test", "train_split": "train", "model": "ViT-B/32",
        "model_cache_dir": None, "task": "zeroshot_classification", "batch_size": 64, "seed": 0,
        "custom_classname_file": None, "custom_template_file": None, "dump_classnames": False,
        "dump_templates": False, "output": "result.json", "skip_existing": False, "save_clf": None, "load_clfs": (),
        "fp_model": False, "q_config": "./exp/config66.yaml", "recon": False, "custom_file": None, "dfq": False,
        "gen_img": False, "gen_method": "d4c", "d4c_config": 3, "gen_batch_size": 16, "gen_lr": 0.01,
        "gen_iter": 3000, "img_path": None,
    }  # fmt: skip
    return PaperFlags(**(defaults | changes))


def record(folder: Path, name: str = "result.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def manifest(folder: Path, name: str = "result.artifact") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name / "manifest.json").read_text())
    return found


def test_the_standard_command_is_the_papers_recipe() -> None:
    recipe = recipe_of(flags(dfq=True, gen_img=True, recon=True), resnet=False)
    paper = load_recipe("paper-w6a6")  # what the default configuration says
    assert recipe.synthesize == paper.synthesize
    assert (recipe.reconstruct, recipe.calibrate, recipe.rules) == (paper.reconstruct, paper.calibrate, paper.rules)


@pytest.mark.parametrize(
    ("changes", "resnet", "expected"),
    [
        ({"gen_lr": 0.5}, False, {"learning_rate": 0.5}),
        ({"gen_iter": 7}, False, {"steps": 7}),
        ({"gen_batch_size": 8}, False, {"batch": 8}),
        ({"d4c_config": 0}, False, {"structural_contrast": False, "perturbation": False, "prompt_contrast": 1.0}),
        ({"d4c_config": 1}, False, {"structural_contrast": True, "perturbation": False}),
        ({"d4c_config": 2}, False, {"structural_contrast": False, "perturbation": True}),
        ({"gen_method": "baseline"}, True, {"batchnorm_statistics": 1.0, "prompt_contrast": 0.0}),
        ({"gen_method": "baseline"}, False, {"patch_similarity": 1.0, "prompt_contrast": 0.0}),
        ({"gen_img": False}, False, {"method": "noise", "steps": 0}),
    ],
)
def test_flags_of_synthesis_reach_the_recipe(changes: dict[str, Any], resnet: bool, expected: dict[str, Any]) -> None:
    config = recipe_of(flags(**({"dfq": True, "gen_img": True} | changes)), resnet=resnet).synthesize
    assert {key: getattr(config, key) for key in expected} == expected


def test_recon_decides_between_learned_and_nearest_rounding() -> None:
    assert recipe_of(flags(), resnet=False).reconstruct.method == "none"
    assert recipe_of(flags(recon=True), resnet=False).reconstruct.method == "adaround"


@pytest.mark.parametrize(("config", "bits"), [("config48", (4, 8)), ("config66", (6, 6)), ("config88", (8, 8))])
def test_q_config_decides_on_bits(config: str, bits: tuple[int, int]) -> None:
    recipe = recipe_of(flags(q_config=f"./exp/{config}.yaml"), resnet=False)
    site = "image.blocks.0.mlp.fc1"
    assert (recipe.bits(site, "weight_bits"), recipe.bits(site, "activation_bits")) == bits


def test_the_program_from_flags_to_result(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    printed = run("--model", f"local-dir:{vit_folder}", "--dfq", "--gen_img", "--recon", *FAST)
    found = record(tmp_path)
    assert {"dataset", "model", "task", "metrics"} == set(found)
    assert found["task"] == "zeroshot_classification"
    assert set(found["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    toml = printed[printed.index("name = ") : printed.rindex("{\n")].rpartition("]]")[0]
    assert 'name = "config"' in toml  # the recipe that the flags became
    assert (tmp_path / "result.artifact" / "model.safetensors").exists()
    kept = ImageSet.load(tmp_path / "result.artifact.work" / "images.safetensors")
    assert (len(kept), kept.source) == (4, "d4c")
    assert parse_recipe("r", (tmp_path / "result.artifact" / "recipe.toml").read_text()).synthesize.steps == 1


def test_the_float_model_needs_no_images(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    printed = run("--model", f"local-dir:{vit_folder}", "--fp_model", "--recon")
    assert record(tmp_path)["metrics"]["acc1"] >= 0
    assert not (tmp_path / "result.artifact").exists()
    assert "--recon has no effect with --fp_model" in printed


def test_without_dfq_real_training_images_calibrate(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    printed = run("--model", f"local-dir:{vit_folder}", "--gen_img", "--img_path", "pictures")
    kept = ImageSet.load(tmp_path / "result.artifact.work" / "images.safetensors")
    assert (len(kept), kept.source) == (4, "wds/colours train")
    assert "--gen_img has no effect without --dfq" in printed
    assert "--img_path has no effect without --dfq" in printed
    assert not (tmp_path / "pictures").exists()


def test_data_free_runs_never_open_the_training_images(run: Run, vit_folder: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(data / "wds_colours" / "train")
    run("--model", f"local-dir:{vit_folder}", "--dfq")
    assert ImageSet.load(tmp_path / "result.artifact.work" / "images.safetensors").source == "noise"


def test_img_path_gets_pictures(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    run("--model", f"local-dir:{vit_folder}", "--dfq", "--gen_img", *FAST, "--img_path", "pictures")
    names = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert names == [f"Generated_Image_{i:03d}.png" for i in range(4)]


def test_pictures_are_clipped_not_wrapped(tmp_path: Path) -> None:
    preprocess = Preprocess(4)
    pixels = torch.full((2, 3, 4, 4), 9.0)
    pixels[1] = -9
    save_pictures(ImageSet.unlabelled(pixels, "test"), preprocess, tmp_path)
    for i, value in ((0, 255), (1, 0)):
        with Image.open(tmp_path / f"Generated_Image_00{i}.png") as picture:
            assert (np.asarray(picture) == value).all()


def test_custom_file_gives_the_prompts(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"classnames": ["spoon", "fork"], "templates": ["my {c}"]}))
    run("--model", f"local-dir:{vit_folder}", "--dfq", "--gen_img", *FAST, "--custom_file", "mine.json")
    kept = ImageSet.load(tmp_path / "result.artifact.work" / "images.safetensors")
    assert kept.prompts == ("my spoon", "my fork")


def test_the_data_sets_own_templates_make_the_calibration_texts(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    run("--model", f"local-dir:{vit_folder}", "--dfq", "--output", "a.json")
    (tmp_path / "templates.json").write_text(json.dumps({"wds/colours": ["entirely {c} otherwise"]}))
    run("--model", f"local-dir:{vit_folder}", "--dfq", "--output", "b.json", "--custom_template_file", "templates.json",
        "--dump_templates", "--dump_classnames")  # fmt: skip
    assert manifest(tmp_path, "a.artifact")["settings"] != manifest(tmp_path, "b.artifact")["settings"]
    assert record(tmp_path, "b.json")["templates"] == ["entirely {c} otherwise"]
    assert len(record(tmp_path, "b.json")["classnames"]) == 6
    assert json.loads((tmp_path / "a.templates.json").read_text())["templates"] == [
        "a {c} thing",
        "the {c} thing",
        "{c}",
    ]


def test_model_cache_dir_holds_openais_files(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    said = run("--model", "ViT-L/14@336px", "--model_cache_dir", "cache", "--fp_model", code=2)
    assert "cache/ViT-L-14-336px.pt" in said
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ViT-B-32.pt").write_bytes(b"broken")
    assert "ViT-B-32.pt" in run("--model", "ViT-B/32", "--model_cache_dir", "cache", "--fp_model", code=1)


def test_classifiers_are_saved_and_averaged(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    model = ("--model", f"local-dir:{vit_folder}", "--fp_model")
    run(*model, "--save_clf", "clf.pt", "--output", "a.json")
    saved = torch.load(tmp_path / "clf.pt", weights_only=True)
    assert saved.shape == (16, 6)  # [embedding, class]
    run(*model, "--load_clfs", "clf.pt", "clf.pt", "--output", "b.json")
    assert record(tmp_path, "a.json")["metrics"] == record(tmp_path, "b.json")["metrics"]
    torch.save(3 * saved.flip(1), tmp_path / "other.pt")
    run(*model, "--load_clfs", "clf.pt", "other.pt", "--save_clf", "mean.pt")
    mean = torch.load(tmp_path / "mean.pt", weights_only=True)
    torch.testing.assert_close(mean, (saved + 3 * saved.flip(1)) / 2)
    assert "not a saved classifier" in run(*model, "--load_clfs", "none.pt", code=2)
    torch.save(saved[:, :2].clone(), tmp_path / "narrow.pt")
    assert "different shapes: (16, 2), (16, 6)" in run(*model, "--load_clfs", "clf.pt", "narrow.pt", code=2)
    run(*model, "--save_clf", "new/folder/clf.pt")
    assert torch.equal(torch.load(tmp_path / "new" / "folder" / "clf.pt", weights_only=True), saved)


def test_output_names_are_filled_in_and_existing_ones_skipped(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    model = ("--model", f"local-dir:{vit_folder}", "--fp_model", "--output", "out-{task}-{dataset}.json")
    run(*model)
    path = tmp_path / "out-zeroshot_classification-wds-colours.json"
    path.write_text(json.dumps({"kept": True}))
    assert '"kept": true' in run(*model, "--skip_existing")
    run(*model)
    assert "metrics" in json.loads(path.read_text())


def test_seed_changes_the_noise(run: Run, vit_folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run("--model", f"local-dir:{vit_folder}", "--dfq", "--seed", seed, "--output", f"{seed}.json")
    sets = [ImageSet.load(tmp_path / f"{s}.artifact.work" / "images.safetensors").pixels for s in (0, 1)]
    assert not torch.equal(*sets)


def test_lists_count_their_first_and_inherited_flags_say_so(run: Run, vit_folder: Path) -> None:
    model = ("--model", f"local-dir:{vit_folder}", "RN50", "--fp_model")
    said = run(*model, "--num_workers", "4", "--fewshot_k", "1", "--no_amp", "--distributed")
    for flag in ("num_workers", "fewshot_k", "no_amp", "distributed"):
        assert f"--{flag} has no effect" in said
    assert "has no effect" not in run(*model, "--num_workers", "4", "--quiet")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--d4c_config", "4"), ("--gen_method", "best"), ("--gen_iter", "many"), ("--no_such_flag",),
        ("--model_type", "ja_clip"), ("--output", "{nothing}.json"), ("--model", "ViT-B/31"),
        ("--dataset_root", "{nothing}"), ("--batch_size", "0"), ("--threads", "0"), ("--load_clfs", "none.pt"),
        ("--q_config", "none.yaml"), ("--custom_template_file", "none.json"), ("--dataset", "wds/none"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line_and_code_2(run: Run, arguments: tuple[str, ...], tmp_path: Path) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    said = run("--dfq", *arguments, code=2)
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == before


def test_help_lists_the_papers_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["d4c", "reproduce", "--help"])
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr().out
    assert exit_.value.code == 0
    for flag in ("dataset", "dataset_root", "model", "fp_model", "q_config", "recon", "custom_file", "dfq", "gen_img",
                 "gen_method", "d4c_config", "gen_batch_size", "gen_lr", "gen_iter", "img_path"):  # fmt: skip
        assert f"--{flag}" in printed
