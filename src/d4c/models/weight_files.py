"""Reading tensors out of weight files without executing anything that a file says."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from d4c.errors import ModelFileError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, a torch checkpoint or a TorchScript archive.

    A checkpoint may hold its tensors under `state_dict`, and their names may begin with `module.`.

    Raises:
        ModelFileError: the file cannot be read, or its pickle asks for anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            return _read_torchscript(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelFileError(f"{path}: refused, its pickle asks for more than tensors") from error
    except Exception as error:  # a damaged pickle or archive can fail in every way there is
        raise ModelFileError(f"{path}: cannot be read as weights: {_first_line(error)}") from error
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise ModelFileError(f"{path}: holds a {type(loaded).__name__}, not a state dict")
    tensors = {str(k).removeprefix("module."): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ModelFileError(f"{path}: holds no tensors")
    return tensors


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


# What a pickle calls the storage of each type; torch's own classes warn when asked for their dtype.
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Module:
    """Stands for every TorchScript class; keeps the attributes that the archive gives it, runs nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _TensorUnpickler(pickle.Unpickler):
    """Rebuilds the module tree of a TorchScript archive from inert parts; every other name is refused."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self.archive, self.prefix = archive, prefix
        self.storages: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; it raises for all but modules without code and the parts of tensors."""
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_tensorlist", "build_doublelist"):
            return list
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """The storage of a tensor, from the archive."""
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.prefix}/data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
        return torch.storage.TypedStorage(wrap_storage=self.storages[key], dtype=dtype, _internal=True)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = _TensorUnpickler(archive, data.removesuffix("/data.pkl")).load()
    tensors: dict[str, Tensor] = {}
    _collect(root, "", tensors)
    if not tensors:
        raise ModelFileError(f"{path}: holds no tensors")
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", tensors)
