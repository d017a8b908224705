from pathlib import Path

import torch

from d4c import synthesize
from d4c.artifact import Work
from d4c.images import ImageSet
from d4c.models import Clip

PROMPTS = ("a photo of a kettle.", "a photo of a goose.")


def make(clip: Clip, cache: Path | None, prompts: tuple[str, ...] = PROMPTS) -> tuple[dict[str, ImageSet], int]:
    """The sets, and how many times progress was reported."""
    calls: list[int] = []
    return synthesize.held_out_sets(clip, prompts, cache, Work(None, lambda *a: calls.append(a[1]))), len(calls)


def test_four_different_sets_of_32(tiny_clip: Clip, tmp_path: Path) -> None:
    sets, _ = make(tiny_clip, None)
    assert list(sets) == ["synthetic", "ten_steps", "one_over_f", "dead_leaves"]
    assert all(s.pixels.shape == (32, 3, 32, 32) for s in sets.values())
    assert len({s.pixels.sum().item() for s in sets.values()}) == 4
    low, high = (torch.from_numpy(v) for v in tiny_clip.preprocess.valid_range())
    assert all(bool(((s.pixels >= low) & (s.pixels <= high)).all()) for s in sets.values())


def test_the_cache_finds_them_again_for_the_same_model_and_prompts_only(
    tiny_clip: Clip, tiny_resnet: Clip, tmp_path: Path
) -> None:
    first, made = make(tiny_clip, tmp_path)
    again, found = make(tiny_clip, tmp_path)
    assert made > 0
    assert found == 0
    assert all(torch.equal(first[name].pixels, again[name].pixels) for name in first)
    assert make(tiny_clip, tmp_path, PROMPTS[:1])[1] == made
    assert make(tiny_resnet, tmp_path)[1] == made


def test_a_damaged_cache_file_is_made_again(tiny_clip: Clip, tmp_path: Path) -> None:
    first, made = make(tiny_clip, tmp_path)
    for path in (tmp_path / "held-out").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    again, remade = make(tiny_clip, tmp_path)
    assert remade == made
    assert torch.equal(first["synthetic"].pixels, again["synthetic"].pixels)


def test_a_cache_that_cannot_be_written_is_done_without(tiny_clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "held-out").write_text("a file where the folder should be")
    assert len(make(tiny_clip, tmp_path)[0]["synthetic"]) == 32
