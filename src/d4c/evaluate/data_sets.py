"""Where data sets lie and who reads them: CLIP_benchmark's names, class names, templates and, mostly, its code."""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d4c.artifact.work import Report
from d4c.errors import MissingExtraError, RunError, UnknownNameError, UsageError
from d4c.evaluate.cifar import CIFAR, read_cifar
from d4c.evaluate.imagenet import DEVKIT, VALIDATION, is_imagenet, read_imagenet
from d4c.inputs import Preprocess

CAPTION_SETS = ("flickr8k", "flickr30k", "mscoco_captions")
# What CLIP_benchmark fetches only when it is told to; its other sets download whenever they miss a file.
TORCHVISION_SETS = (
    "cars", "country211", "dtd", "eurosat", "fgvc_aircraft", "flowers", "food101", "gtsrb", "mnist",
    "pcam", "pets", "renderedsst2", "stl10", "sun397", "voc2007",
)  # fmt: skip
KNOWN_SETS = ("wds/NAME", *CIFAR, "imagenet1k", *CAPTION_SETS, *TORCHVISION_SETS)


@dataclass(frozen=True)
class OpenSet:
    """A set that was found: its samples, how many (0 where it does not say), and its lists, empty for captions."""

    samples: Iterable[Any]
    size: int
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class _InOrder:
    """A set that is asked by number, walked through; an `IndexError` of a broken one does not end it early."""

    dataset: Any

    def __getitem__(self, number: int) -> Any:
        return self.dataset[number]

    def __iter__(self) -> Iterator[Any]:
        for i in range(len(self.dataset)):
            yield self.dataset[i]


def find_set(name: str, root: Path, split: str) -> Path:
    """The folder of a set, at `root` or below it.

    Raises:
        UnknownNameError: no such set; UsageError: it is not there, or has no such split.
    """
    if name not in KNOWN_SETS[1:] and not name.startswith("wds/"):
        raise UnknownNameError("data set", name, KNOWN_SETS)
    _check_split(name, split)
    if not root.is_dir():
        raise UsageError(f"no such folder: {root}")
    cleaned = short_name(name).replace("/", "-")
    folders = (root / f"wds_{cleaned}", root / cleaned, root) if name.startswith("wds/") else (root, root / cleaned)
    for folder in folders:
        if _is_there(name, folder, split):
            return folder
    raise UsageError(f"{name}: not found below {root}; {_expected(name, split)}")


def open_set(name: str, folder: Path, preprocess: Preprocess, split: str, report: Report | None) -> OpenSet:
    """Open what `find_set` found.

    Raises:
        MissingExtraError: the `eval` extra is not installed; RunError: files cannot be read.
    """
    if name in CIFAR:
        images, classnames = read_cifar(name, folder, preprocess, split)
        return OpenSet(images, len(images), classnames, _own_list("zeroshot_classification_templates", name))
    if name == "imagenet1k":
        curated = dict(zip(_builder().all_imagenet_wordnet_ids, _own_list("classnames", name), strict=True))
        files, classnames = read_imagenet(folder, preprocess, _imagenet_split(split), curated, report or _silent)
        return OpenSet(files, len(files), classnames, _own_list("zeroshot_classification_templates", name))
    return _built(name, folder, preprocess, split)


def is_retrieval(name: str, folder: Path) -> bool:
    """Whether the set's images have captions instead of labels."""
    if not name.startswith("wds/"):
        return name in CAPTION_SETS
    kind = folder / "dataset_type.txt"
    return kind.is_file() and kind.read_text(encoding="utf-8").strip().lower() == "retrieval"


def short_name(name: str) -> str:
    """The name without `wds/`."""
    return name.removeprefix("wds/")


def _built(name: str, folder: Path, preprocess: Preprocess, split: str) -> OpenSet:
    """Through CLIP_benchmark's own builder."""
    task = "zeroshot_classification" if name in TORCHVISION_SETS else "its own lists"
    builder = _builder()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            for harmless in (".*shardshuffle", "split argument ignored"):
                warnings.filterwarnings("ignore", message=harmless, category=UserWarning)
            dataset = builder.build_dataset(
                dataset_name=name, root=str(folder), transform=preprocess, split=split, task=task, download=False
            )
    except AssertionError as error:  # how CLIP_benchmark says that there is no such split
        raise UsageError(f"{name}: {error}") from error
    except ImportError as error:
        raise MissingExtraError("eval", f"evaluation on {name}") from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise RunError(f"{name}: cannot be read from {folder}: {error}") from error
    size = len(dataset) if hasattr(dataset, "__len__") else 0
    classnames, templates = (tuple(getattr(dataset, key, None) or ()) for key in ("classes", "templates"))
    return OpenSet(_InOrder(dataset) if size else dataset, size, classnames, templates)


def _check_split(name: str, split: str) -> None:
    allowed = {"imagenet1k": ("test", "val", "train")} | dict.fromkeys(CIFAR, ("test", "train"))
    if split not in allowed.get(name, (split,)) or not split or "/" in split:
        raise UsageError(f"{name} has no split '{split}'; it has {', '.join(allowed.get(name, ('test',)))}")


def _is_there(name: str, folder: Path, split: str) -> bool:
    if name in CIFAR:
        return CIFAR[name].is_below(folder)
    if name == "imagenet1k":
        return is_imagenet(folder, _imagenet_split(split))
    return folder.is_dir() and all((folder / part).exists() for part in _parts(name, split))


def _parts(name: str, split: str) -> list[str]:
    """What lies in the folder of a set; without these CLIP_benchmark would fail, or start to download."""
    if name.startswith("wds/"):
        return [split]
    if name == "mscoco_captions":
        return ["train2014" if split == "train" else "val2014", f"coco_{split}_karpathy.json"]
    return [f"{name}_{split}_karpathy.txt"] if name in CAPTION_SETS else []


def _expected(name: str, split: str) -> str:
    if name.startswith("wds/"):
        cleaned = short_name(name).replace("/", "-")
        return f"looked for {cleaned} and wds_{cleaned} with a folder {split}"
    if name in CIFAR:
        return f"expected the folder {CIFAR[name].folder} or {CIFAR[name].archive}"
    if name == "imagenet1k":
        return f"expected {_imagenet_split(split)}/WNID/*.JPEG, or {DEVKIT} and {VALIDATION}"
    return "expected " + " and ".join(_parts(name, split)) + " beside the images"


def _imagenet_split(split: str) -> str:
    return "train" if split == "train" else "val"


def _own_list(kind: str, name: str) -> tuple[str, ...]:
    """One of the lists that CLIP_benchmark carries."""
    try:
        file = importlib.resources.files("clip_benchmark.datasets") / f"en_{kind}.json"
    except ImportError as error:
        raise MissingExtraError("eval", "evaluation on data sets") from error
    return tuple(json.loads(file.read_text(encoding="utf-8"))[name])


def _builder() -> Any:
    from d4c.models.torchvision_schemas import declare_torchvision_schemas

    declare_torchvision_schemas()
    try:
        import webdataset  # noqa: F401
        from clip_benchmark.datasets import builder
    except ImportError as error:
        raise MissingExtraError("eval", "evaluation on data sets") from error
    return builder


def _silent(_: str, __: int, ___: int) -> None:
    pass
