"""Write the token ids of all captions, so that training needs no tokenizer.

    PYTHONPATH=src python training/captions.py --data DATA --out RUNS/captions.npz

A caption is a template with a class's name or one of its synonyms. `ids` [caption, token] and `labels` [caption] are
all of them, `names` [class, token] is `a photo of a NAME.` in label order; both cut to the longest live token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from d4c.inputs.tokenizer import Tokenizer
from data import load_classes

PLAIN = ("{c}", "a {c}", "the {c}", "a photo of a {c}", "a picture of a {c}.", "an image of a {c}.", "this is a {c}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    files = [
        args.data / f"wds_{name}" / "zeroshot_classification_templates.txt" for name in ("tiny-imagenet", "cifar10")
    ]
    templates = {t for file in files for t in file.read_text().splitlines() if t} | set(PLAIN)
    classes = load_classes(args.data)
    pairs = sorted(
        (template.replace("{c}", name), c["label"])
        for c in classes
        for name in [c["name"], *c["synonyms"]]
        for template in templates
    )
    tokenizer = Tokenizer.openai()
    ids = tokenizer([caption for caption, _ in pairs])
    names = tokenizer([f"a photo of a {c['name']}." for c in classes])
    np.savez(
        args.out,
        ids=ids[:, : ids.argmax(axis=1).max() + 1].astype(np.uint16),
        labels=np.array([label for _, label in pairs], np.int64),
        names=names[:, : names.argmax(axis=1).max() + 1].astype(np.uint16),
    )
    print(f"{len(pairs)} captions, up to {ids.argmax(axis=1).max() + 1} tokens")


if __name__ == "__main__":
    main()
