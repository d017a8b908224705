"""What is asked about a data set: which class an image is of, or which caption belongs to which image."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from d4c.artifact.work import Report
from d4c.errors import RunError, UsageError
from d4c.evaluate.data_sets import find_set, is_retrieval, open_set, short_name
from d4c.inputs import Preprocess

Array = NDArray[np.float32]
Templates = Sequence[str] | Mapping[str, Sequence[str]]
Target = TypeVar("Target")


@dataclass(frozen=True)
class ImageTask:
    """A labelled set, read as it is walked through: which class is each image of?

    Args:
        samples: pairs of pixels [3, size, size] in normalised space and the label, an index into the class names.
        size: how many, 0 where the set does not say.
        classnames: in label order.
        templates: with `{c}`, or the whole texts of each class by its name.
    """

    name: str
    samples: Iterable[tuple[Array, int]]
    size: int
    classnames: tuple[str, ...]
    templates: Templates

    def batches(self, size: int) -> Iterator[tuple[Array, list[int]]]:
        """Pixels [image, 3, size, size] and their labels.

        Raises:
            RunError: an image cannot be read, or a label is no class; so also below.
        """
        return _batches(self.name, self.samples, self._label, size)

    def draw(self, num: int, seed: int, look_around: int = 1) -> tuple[Array, list[int]]:
        """Some images, all equally likely: many sets lie class by class, so that their first images are of a few.

        Args:
            num: how many; fewer where there are fewer.
            look_around: of a stream, which is not asked by number, from how many times as many at its beginning.

        Returns:
            pixels [image, 3, size, size] and their labels, as `batches`.
        """
        generator, pick = random.Random(seed), getattr(self.samples, "__getitem__", None)
        if self.size and pick is not None:
            numbers = sorted(generator.sample(range(self.size), min(num, self.size)))
            chosen = list(_read(self.name, map(pick, numbers), self._label))
        else:
            chosen = []
            seen = _read(self.name, itertools.islice(self.samples, look_around * num), self._label)
            for i, pair in enumerate(seen):  # a reservoir
                place = i if i < num else generator.randrange(i + 1)
                if place < num:
                    chosen[place : place + 1] = [pair]
        if not chosen:
            raise RunError(f"{self.name}: the set is empty")
        return np.stack([pixels for pixels, _ in chosen]), [label for _, label in chosen]

    def _label(self, raw: Any) -> int:
        label = int(raw)
        if not 0 <= label < len(self.classnames):
            raise RunError(f"{self.name}: label {label} is none of the {len(self.classnames)} classes")
        return label


@dataclass(frozen=True)
class CaptionTask:
    """Images with captions, read as they are walked through: which belong together?

    Args:
        samples: pairs of pixels [3, size, size] in normalised space and the image's captions.
        size: how many images, 0 where the set does not say.
    """

    name: str
    samples: Iterable[tuple[Array, Sequence[str]]]
    size: int

    def batches(self, size: int) -> Iterator[tuple[Array, list[list[str]]]]:
        """Pixels [image, 3, size, size] and the captions of each image."""
        return _batches(self.name, self.samples, lambda raw: [str(text) for text in raw], size)


Task = ImageTask | CaptionTask


def load_task(
    name: str,
    root: Path,
    preprocess: Preprocess,
    split: str = "test",
    *,
    classnames: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: Templates | Mapping[str, Templates] | None = None,
    report: Report | None = None,
) -> Task:
    """Find a data set and read its lists; images are read later, nothing is ever downloaded.

    Args:
        name: as CLIP_benchmark spells it: `cifar10`, `imagenet1k`, `wds/NAME`, `flickr8k`, …
        root: the set's folder, or the folder where that lies under its name (`wds/NAME` also as `wds_NAME`).
        split: as CLIP_benchmark has it; ImageNet's "test" is its validation images.
        classnames: instead of the set's own, or by data set as in CLIP_benchmark's `--custom_classname_file`.
        templates: instead of the set's own, or by data set as in its `--custom_template_file`, where `imagenet1k`
            serves the sets that are not named; in place of a list may stand whole texts by class name.
        report: told when archives are unpacked.

    Raises:
        MissingExtraError: the `eval` extra is not installed.
        UsageError: the set is not below `root`, has no such split, or its names or templates make no sense.
        UnknownNameError: no such set.
        RunError: its files cannot be read.
    """
    folder = find_set(name, root, split)
    found = open_set(name, folder, preprocess, split, report)
    if is_retrieval(name, folder):
        return CaptionTask(name, found.samples, found.size)
    names = _chosen(classnames, name, None) or found.classnames
    chosen = _chosen(templates, name, "imagenet1k") or found.templates
    if not names or not chosen:
        raise UsageError(f"{name}: no class names and templates; is it a classification set?")
    task = ImageTask(name, found.samples, found.size, tuple(names), chosen)
    class_texts(task)
    return task


def class_texts(task: ImageTask) -> list[list[str]]:
    """The texts of each class, by label.

    Raises:
        UsageError: a template cannot be filled, or a class has no text.
    """
    if isinstance(task.templates, Mapping):
        lost = [name for name in task.classnames if not task.templates.get(name)]
        if lost:
            raise UsageError(f"{task.name}: the templates by class have none for '{lost[0]}'")
        return [list(task.templates[name]) for name in task.classnames]
    for template in task.templates:
        try:
            template.format(c="")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{task.name}: a template needs {{c}} and no other braces: '{template}'") from error
    return [[template.format(c=name) for template in task.templates] for name in task.classnames]


def _chosen(given: Any, name: str, otherwise: str | None) -> Any:
    """The user's list for this set, or None; texts by class name are told from lists by set by the set's name."""
    if given is None or not isinstance(given, Mapping):
        return given
    for key in (name, short_name(name), otherwise):
        if key in given:
            return given[key]
    if otherwise is None:
        raise UsageError(f"{name}: the class names given are for {', '.join(map(repr, given))}")
    return given


def _batches(
    name: str, samples: Iterable[tuple[Array, Any]], target: Callable[[Any], Target], size: int
) -> Iterator[tuple[Array, list[Target]]]:
    pixels: list[Array] = []
    targets: list[Target] = []
    for image, wanted in _read(name, samples, target):
        pixels.append(image)
        targets.append(wanted)
        if len(targets) == size:
            yield np.stack(pixels), targets
            pixels, targets = [], []
    if targets:
        yield np.stack(pixels), targets


def _read(
    name: str, samples: Iterable[tuple[Array, Any]], target: Callable[[Any], Target]
) -> Iterator[tuple[Array, Target]]:
    walk = iter(samples)
    while True:
        try:
            image, raw = next(walk)
            wanted = target(raw)
        except StopIteration:
            return
        except RunError:
            raise
        except Exception as error:  # archives, decoders and pictures each have errors of their own
            raise RunError(f"{name}: an image cannot be read: {error}") from error
        yield image, wanted
