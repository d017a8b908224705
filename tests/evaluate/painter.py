"""Small sets in CLIP_benchmark's layout, and an encoder that knows nothing but colours."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from d4c.evaluate import ImageTask, load_task
from d4c.inputs import Preprocess

COLOURS = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255),
    "pink": (255, 0, 255),
}  # fmt: skip
TEMPLATES = ["a {c} thing", "the {c} thing", "{c}"]
SIZE = 8


# Ten pictures; 3 and 7 carry a wrong label, so a seeing encoder has 8 of 10 right.
SHOWN = [0, 1, 2, 3, 4, 5, 0, 1, 2, 0]
LABELS = [0, 1, 2, 4, 4, 5, 0, 5, 2, 0]


def silent(_: str, __: int, ___: int) -> None:
    pass


class Names:
    """A tokenizer: the index of the colour in a text, and which template it is in."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        ids = []
        for text in texts:
            name = next(c for c in COLOURS if c in text)
            ids.append([list(COLOURS).index(name), TEMPLATES.index(text.replace(name, "{c}"))])
        return np.array(ids)


@dataclass(frozen=True)
class Painter:
    """Pictures to their mean colour, texts to the colour they name, both around grey; templates differ in length.

    Args:
        blind: channels that are not seen.
    """

    blind: tuple[int, ...] = ()

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess(SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    @property
    def tokenizer(self) -> Any:
        return Names()

    def encode_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        z = 3 * pixels.mean(axis=(2, 3))  # [image, channel] from -3 to 3
        z[:, list(self.blind)] = 0
        return z

    def encode_text(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        z = np.array(list(COLOURS.values()), np.float32)[ids[:, 0]] / 127.5 - 1  # [text, channel] of -1 and 1
        turned = z + np.eye(3, dtype=np.float32)[ids[:, 1]] / 2  # each template leans another way
        return turned * (1 + 5 * ids[:, 1:]).astype(np.float32)


def encoded(picture: Image.Image, suffix: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[suffix])
    return file.getvalue()


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (12, 9)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def write_set(
    folder: Path, samples: Sequence[tuple[bytes, str]], *, shards: int = 1, suffix: str = "png", label: str = "cls",
    names: Sequence[str] | None = tuple(COLOURS), templates: Sequence[str] | None = TEMPLATES, kind: str | None = None,
) -> Path:  # fmt: skip
    """Pairs of image bytes and labels as CLIP_benchmark's exporter lays them out."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(str(shards))
    for file, lines in (("classnames", names), ("zeroshot_classification_templates", templates)):
        if lines is not None:
            (folder / f"{file}.txt").write_text("\n".join(lines))
    if kind is not None:
        (folder / "dataset_type.txt").write_text(kind)
    for shard in range(shards):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for i in range(shard, len(samples), shards):
                for name, data in (
                    (f"s{i:07}.{suffix}", samples[i][0]),
                    (f"s{i:07}.{label}", samples[i][1].encode("latin-1")),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def load(root: Path, name: str = "wds/colours", **arguments: Any) -> Any:
    return load_task(name, root, Painter().preprocess, **arguments)


class Oracle(torch.nn.Module):
    """The same encoder as CLIP_benchmark wants it."""

    def __init__(self, painter: Painter) -> None:
        super().__init__()
        self.painter = painter

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.painter.encode_image(pixels.numpy()))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.painter.encode_text(ids.numpy()))


class Loader:
    """All of a task in batches of three, as CLIP_benchmark wants it."""

    def __init__(self, task: ImageTask) -> None:
        self.dataset = self
        self.classes = task.classnames
        self.samples = list(task.samples)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(0, len(self.samples), 3):
            pixels, labels = zip(*self.samples[i : i + 3], strict=True)
            yield torch.from_numpy(np.stack(pixels)), torch.tensor(labels)
