import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluate.painter import COLOURS, LABELS, SHOWN, flat, write_set


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What webdataset left open is closed while its warnings are ignored."""
    yield
    gc.collect()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the set `wds_colours` in it."""
    colours = list(COLOURS.values())
    samples = [(flat(colours[c]), str(label)) for c, label in zip(SHOWN, LABELS, strict=True)]
    write_set(tmp_path / "data" / "wds_colours", samples)
    return tmp_path / "data"
