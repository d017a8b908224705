import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import pretrained
from safetensors.torch import save_file
from torch import Tensor, nn

from d4c.artifact.architecture import ResNetConfig, TextConfig, VisionTransformerConfig
from d4c.errors import ModelFileError
from d4c.inputs import Preprocess
from d4c.models import from_openai, load
from d4c.models.attention import QuickGELU
from d4c.models.from_openai import config_from_state
from models.oracle import (
    OPENAI_RESNET,
    OPENAI_VIT,
    changed,
    embeddings,
    inputs_of_size,
    open_clip_model,
    openai_state,
    parity_errors,
    row_error,
    save_torchscript,
    transformers_embeddings,
)

Files = dict[str, Path]


def save_forms(folder: Path, state: dict[str, Tensor]) -> Files:
    """The same weights in every form of file, and in float32."""
    files = {name: folder / name for name in ("dict.pt", "legacy.pt", "training.pt", "script.pt", "half.safetensors")}
    torch.save(state, files["dict.pt"])
    torch.save(state, files["legacy.pt"], _use_new_zipfile_serialization=False)
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": prefixed}, files["training.pt"])
    save_torchscript(state, files["script.pt"])
    save_file(state, files["half.safetensors"])
    files["single.safetensors"] = folder / "single.safetensors"
    save_file({name: tensor.float() for name, tensor in state.items()}, files["single.safetensors"])
    return files


@pytest.fixture(scope="module", params=[OPENAI_VIT, OPENAI_RESNET], ids=["vit", "resnet"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Files]:
    """open_clip's model, rounded as OpenAI's are, and its files."""
    model = open_clip_model(request.param)
    return model, save_forms(tmp_path_factory.mktemp("openai"), openai_state(model))


def test_every_form_of_file_embeds_as_open_clip_does(case: tuple[nn.Module, Files]) -> None:
    model, files = case
    clips = {name: load(str(path)) for name, path in files.items()}
    size = int(torch.load(files["dict.pt"])["input_resolution"])
    for name, clip in clips.items():
        assert max(parity_errors(clip, model)) < 1e-5, name
        assert clip.logit_scale == model.logit_scale
        assert clip.preprocess == Preprocess(size)
    assert len({clip.fingerprint for clip in clips.values()}) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # open_clip reads with TorchScript
@pytest.mark.parametrize("form", ["dict.pt", "script.pt"])
def test_open_clip_reads_the_same_file_the_same_way(case: tuple[nn.Module, Files], form: str) -> None:
    path = str(case[1][form])
    theirs = open_clip.load_openai_model(path, precision="fp32", device="cpu")
    assert max(parity_errors(load(path), theirs)) < 1e-5


def test_the_architecture_is_read_off_the_shapes() -> None:
    text = TextConfig(12, 60, 128, 2, 2, 512, "quick_gelu")
    vit = config_from_state(openai_state(open_clip_model(OPENAI_VIT)), "it")
    assert (vit.embed_dim, vit.text) == (24, text)
    assert vit.image == VisionTransformerConfig(24, 8, 128, 3, 2, 512, "quick_gelu")
    resnet = config_from_state(openai_state(open_clip_model(OPENAI_RESNET)), "it")
    assert (resnet.embed_dim, resnet.text) == (24, text)
    assert resnet.image == ResNetConfig(64, 8, (2, 1, 1, 2), 4)


def test_an_archive_saved_on_a_gpu_is_read_without_one(case: tuple[nn.Module, Files], tmp_path: Path) -> None:
    # OpenAI's archives name cuda:0 as the place of every tensor; in the pickle a word follows its length.
    saved = zipfile.ZipFile(case[1]["script.pt"])
    assert b"X\x03\x00\x00\x00cpu" in saved.read("script/data.pkl")
    with zipfile.ZipFile(tmp_path / "cuda.pt", "w") as moved:
        for name in saved.namelist():
            moved.writestr(name, saved.read(name).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    assert load(str(tmp_path / "cuda.pt")).fingerprint == load(str(case[1]["script.pt"])).fingerprint


def test_other_weights_have_another_fingerprint(case: tuple[nn.Module, Files], tmp_path: Path) -> None:
    state = torch.load(case[1]["dict.pt"])
    state["ln_final.bias"][-1] += 2**-10
    torch.save(state, tmp_path / "other.pt")
    assert load(str(tmp_path / "other.pt")).fingerprint != load(str(case[1]["dict.pt"])).fingerprint


def test_a_parameter_that_is_missing_is_an_error_whichever_it_is(
    case: tuple[nn.Module, Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(case[1]["dict.pt"])
    parameters = [n for n in state if "." in n or n in ("positional_embedding", "text_projection", "logit_scale")]
    for name in [n for n in parameters if "num_batches" not in n]:
        without = {n: tensor for n, tensor in state.items() if n != name}
        monkeypatch.setattr(from_openai, "read_tensors", lambda _, it=without: it)
        with pytest.raises(ModelFileError) as error:
            load(str(case[1]["dict.pt"]))
        # without it, the file is taken for one of a ResNet
        named = "visual.layer1.0.conv1.weight" if name == "visual.proj" else name
        assert named in str(error.value)
        assert str(error.value).startswith(str(case[1]["dict.pt"]))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda state: state | {"visual.more.weight": torch.ones(2)}, "unexpected parameter visual.more.weight"),
        (lambda state: state | {"text_projection": torch.ones(100, 24)}, "text.projection.weight has shape"),
        (lambda state: state | {"text_projection": torch.ones(128)}, "not the parameters of an OpenAI CLIP"),
        (lambda state: state | {"positional_embedding": torch.tensor(1.0)}, "not the parameters of an OpenAI CLIP"),
        (lambda state: state | {"ln_final.bias": torch.full((128,), torch.nan)}, "text.norm_final.bias holds values"),
        (lambda _: {"a": torch.ones(2)}, "not the parameters of an OpenAI CLIP"),
    ],
)
def test_parameters_that_are_no_openai_clip_are_a_model_file_error(
    break_it: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    words: str,
    case: tuple[nn.Module, Files],
    tmp_path: Path,
) -> None:
    save_file(break_it(torch.load(case[1]["dict.pt"])), tmp_path / "broken.safetensors")
    with pytest.raises(ModelFileError, match=f"broken.safetensors: .*{words}"):
        load(str(tmp_path / "broken.safetensors"))


# The deeper of the two towers has so many blocks; one thread adds up 24 blocks to more than a dozen's rounding.
FULL_SIZE = {
    "RN50": 1e-5, "RN101": 1e-4, "RN50x4": 1e-4, "RN50x16": 1e-4, "RN50x64": 1e-4,
    "ViT-B/32": 1e-5, "ViT-B/16": 1e-5, "ViT-L/14": 1e-4, "ViT-L/14@336px": 1e-4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript itself is deprecated
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models_embed_as_open_clip_and_transformers_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    architecture = name.replace("/", "-").replace("@336px", "-336")
    model = open_clip_model(changed(open_clip.get_model_config(architecture), quick_gelu=True))
    state = openai_state(model)
    save_torchscript(state, tmp_path / "script.pt")
    torch.save(state, tmp_path / "dict.pt")
    pixels, ids = inputs_of_size(model.visual.image_size, model.context_length, model.vocab_size, batch=2)
    expected = {"open_clip": embeddings(model, pixels, ids)}
    del model
    if name.startswith("ViT"):
        expected["Transformers"] = transformers_embeddings(state, pixels, ids)
    del state

    clip = load(str(tmp_path / "script.pt"))
    found = clip.encode_image(pixels), clip.encode_text(ids)
    for library, theirs in expected.items():
        errors = [row_error(ours, reference) for ours, reference in zip(found, theirs, strict=True)]
        record_property(library, errors)
        assert max(errors) < (FULL_SIZE[name] if library == "open_clip" else 1e-4), library
    fingerprint = clip.fingerprint
    del clip
    monkeypatch.setattr(pretrained, "download_pretrained", lambda _: str(tmp_path / "dict.pt"))
    assert load(name).fingerprint == fingerprint  # by name, and from the plain state dict
    record_property("peak_bytes", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    for file in tmp_path.glob("*.pt"):
        file.unlink()  # pytest keeps folders of earlier runs


@pytest.mark.slow
def test_a_full_size_model_trained_with_gelu_embeds_as_open_clip_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_clip_model(open_clip.get_model_config("ViT-B-32") or {})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(pretrained, "download_pretrained", lambda _: str(tmp_path / "model.safetensors"))
    clip = load("ViT-B-32__laion2b_s34b_b79k")
    assert not any(isinstance(module, QuickGELU) for module in clip.modules())
    assert max(parity_errors(clip, model)) < 1e-5
