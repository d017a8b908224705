import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from d4c.errors import ModelFileError
from d4c.models import load
from d4c.models.weight_files import read_tensors
from models.oracle import VIT, open_clip_model, save_torchscript, write_folder

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "a.fp16": torch.tensor([0.1, 65504.0]).half(),
    "a.0.single": torch.tensor(3.25),
    "b.counts": torch.tensor([7, 2**40]),
    "b.one_by_one": torch.ones(1, 1),
}


class Payload:
    """Unpickles into a call; with any loader that follows a pickle, the call happens."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


def payloads(marker: Path) -> list[Payload]:
    """Three calls that would create `marker`."""
    write = f"open({str(marker)!r}, 'w').close()"
    return [
        Payload(os.system, f"touch {marker}"),
        Payload(exec, write),
        Payload(getattr, Payload(__import__, "pathlib"), "Path"),  # no file, but a way to everything
    ]


def zip_of(path: Path, pickled: bytes, *, torchscript: bool) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        if torchscript:
            archive.writestr("archive/constants.pkl", pickle.dumps((), protocol=2))
    return path


# A pickled tuple ("storage", torch.FloatStorage, "9", "cpu", 1): where a tensor's numbers lie in an archive.
STORAGE_9 = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x009X\x03\x00\x00\x00cpuK\x01tQ."

FORMS: dict[str, Callable[[Path, Payload], Path]] = {
    "a pickle": lambda folder, it: _written(folder / "a.pt", pickle.dumps(it, protocol=2)),
    "a pickled dict": lambda folder, it: _written(folder / "a.pt", pickle.dumps({"w": it}, protocol=2)),
    "a checkpoint": lambda folder, it: zip_of(folder / "a.pt", pickle.dumps({"w": it}, 2), torchscript=False),
    "a TorchScript archive": lambda folder, it: zip_of(folder / "a.pt", pickle.dumps(it, 2), torchscript=True),
    "deep in a TorchScript archive": lambda folder, it: zip_of(
        folder / "a.pt", pickle.dumps({"w": [(it,)]}, 2), torchscript=True
    ),
}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def save_every_form(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Path]:
    paths = {name: folder / name for name in ("dict.pt", "legacy.pt", "nested.pt", "script.pt", "tensors.safetensors")}
    torch.save(tensors, paths["dict.pt"])
    torch.save(tensors, paths["legacy.pt"], _use_new_zipfile_serialization=False)
    nested = {"epoch": 2, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(nested, paths["nested.pt"])
    save_torchscript(tensors, paths["script.pt"])
    save_file(tensors, paths["tensors.safetensors"])
    return paths


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_every_form(tmp_path_factory.mktemp("weights"), TENSORS)


def test_every_form_holds_the_same_tensors(files: dict[str, Path]) -> None:
    for name, path in files.items():
        tensors = read_tensors(path)
        assert tensors.keys() == TENSORS.keys(), name
        for key, expected in TENSORS.items():
            torch.testing.assert_close(tensors[key], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool],
)  # fmt: skip
def test_every_type_survives_a_torchscript_archive(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    save_torchscript({"deep.er.t": tensor}, tmp_path / "a.pt")
    torch.testing.assert_close(read_tensors(tmp_path / "a.pt"), {"deep.er.t": tensor}, rtol=0, atol=0)


def test_views_in_a_torchscript_archive_keep_their_strides_and_their_shared_storage(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"whole": base, "turned": base.T, "column": base[:, 1], "end": base[1:]}
    save_torchscript(views, tmp_path / "a.pt")
    torch.testing.assert_close(read_tensors(tmp_path / "a.pt"), views, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["system", "exec", "getattr"])
def test_a_pickle_that_calls_anything_is_refused_and_the_call_does_not_happen(
    form: str, which: int, tmp_path: Path
) -> None:
    marker = tmp_path / "it_ran"
    path = FORMS[form](tmp_path, payloads(marker)[which])
    for read in (read_tensors, lambda path: load(str(path))):
        with pytest.raises(ModelFileError, match="refused, its pickle asks for more than tensors"):
            read(path)
    assert not marker.exists()
    if which < 2:  # the payload is real
        pickle.loads(pickle.dumps(payloads(marker)[which]))
        assert marker.exists()


def test_the_weights_of_a_folder_are_not_executed_either(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, VIT, open_clip_model(VIT).state_dict())
    (folder / "open_clip_model.safetensors").unlink()
    weights = {"visual.proj": torch.ones(2), "more": Payload(os.system, f"touch {tmp_path / 'it_ran'}")}
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelFileError, match="refused"):
        load(f"local-dir:{folder}")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "builtins eval",
        "torch load",
        "torch Storage",
        "torch._utils _rebuild_parameter",
        "torch.jit._pickle restore_type_tag",
        "torch.storage _load_from_bytes",
        "__torch__x os",
    ],
)
def test_an_archive_may_name_nothing_but_modules_and_tensors(name: str, tmp_path: Path) -> None:
    module, attribute = name.split()
    path = zip_of(tmp_path / "a.pt", f"c{module}\n{attribute}\n)R.".encode(), torchscript=True)
    words = "holds no tensors" if module.startswith("__torch__") else "refused"  # an inert stand-in
    with pytest.raises(ModelFileError, match=words):
        read_tensors(path)


@pytest.mark.parametrize("name", ["dict.pt", "legacy.pt", "nested.pt", "script.pt", "tensors.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_a_model_file_error(
    name: str, share: float, files: dict[str, Path], tmp_path: Path
) -> None:
    data = files[name].read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelFileError, match=re.escape(str(tmp_path / name))):
        read_tensors(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # torch speaks up about odd pickles before it fails
@pytest.mark.parametrize("name", ["dict.pt", "script.pt", "tensors.safetensors"])
def test_a_damaged_file_is_read_or_is_a_model_file_error(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    data, path = files[name].read_bytes(), tmp_path / name

    @settings(deadline=None, max_examples=150, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(1, 255)), min_size=1, max_size=3))
    def check(flips: list[tuple[int, int]]) -> None:
        damaged = bytearray(data)
        for position, change in flips:
            damaged[position] ^= change
        path.write_bytes(damaged)
        with contextlib.suppress(ModelFileError):
            read_tensors(path)

    check()


def test_a_flipped_byte_of_an_archive_is_noticed(files: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(files["script.pt"].read_bytes())
    position = data.find(TENSORS["a.weight"].numpy().tobytes())
    assert position > 0
    data[position + 4] ^= 1
    with pytest.raises(ModelFileError, match="CRC"):
        read_tensors(_written(tmp_path / "a.pt", bytes(data)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read as weights"),
        (b".", "cannot be read as weights"),  # a pickle that ends before it begins
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "cannot be read as weights|refused"),
        (b"PK\x03\x04", "cannot be read as weights"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_what_is_no_weight_file_is_a_model_file_error(data: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=words if suffix != ".safetensors" else "cannot be read as weights"):
        read_tensors(_written(tmp_path / f"a{suffix}", data))


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (b"N.", "holds no tensors"),
        (b"c__torch__\nM\n)\x81]b.", "cannot be read as weights"),  # attributes that are a list
        (b"c__torch__\nM\n)\x81}(X\x01\x00\x00\x00nK\x05ub.", "holds no tensors"),  # attributes {"n": 5}
        (b"X\x01\x00\x00\x00aQ.", "cannot be read as weights"),  # a storage that is a word
        (b"0.", "cannot be read as weights|refused"),
        (STORAGE_9, "data/9"),  # which is not there
    ],
)
def test_an_archive_that_makes_no_sense_is_a_model_file_error(pickled: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=words):
        read_tensors(zip_of(tmp_path / "a.pt", pickled, torchscript=True))


def test_an_archive_without_its_pickle_is_a_model_file_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(ModelFileError, match=re.escape(str(tmp_path / "a.pt"))):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds a list, not a state dict"),
        (torch.ones(2), "holds a Tensor, not a state dict"),
        ({"epoch": 3}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
    ],
)
def test_what_is_no_state_dict_is_named(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelFileError) as error:
        read_tensors(tmp_path / "a.pt")
    assert str(error.value) == f"{tmp_path / 'a.pt'}: {words}"


def test_a_file_that_is_not_there_is_a_model_file_error(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors", ""):
        with pytest.raises(ModelFileError):
            read_tensors(tmp_path / name)
