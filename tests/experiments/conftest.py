from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluate.painter import COLOURS, flat, write_set


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What webdataset left open is closed while its warnings are ignored."""
    import gc

    yield
    gc.collect()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the set `wds_colours` of twelve pictures in it, and training pictures beside the test ones."""
    colours = list(COLOURS.values())
    samples = [(flat(colours[i % 6]), str(i % 6)) for i in range(12)]
    folder = write_set(tmp_path / "data" / "wds_colours", samples)
    write_set(tmp_path / "train", [(flat(colours[i % 6], (40, 40)), str(i % 6)) for i in range(9)])
    (tmp_path / "train" / "test").rename(folder / "train")
    return tmp_path / "data"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        noise = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
    return folder
