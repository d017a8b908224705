"""Write the rows no model was trained on: real calibration images, and a set to decide settings on.

    python training/holdout.py --data DATA --out FOLDER

FOLDER/calibration/00000.png … are the 512 *real calibration* images (`d4c quantize tiny --images FOLDER/calibration`);
FOLDER/wds_settings is the rest in CLIP_benchmark's layout (`d4c evaluate … --dataset wds/settings --root FOLDER`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from data import REAL_CALIBRATION, SETTINGS, load_rows


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_webdataset(folder: Path, images: np.ndarray, labels: np.ndarray, like: Path) -> None:
    """One shard, with the class names and templates of another set."""
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        shutil.copy(like / name, folder / name)
    (folder / "test" / "nshards.txt").write_text("1\n")
    with tarfile.open(folder / "test" / "0.tar", "w") as shard:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            for kind, content in (("png", png(image)), ("cls", str(label).encode())):
                entry = tarfile.TarInfo(f"s{i:07d}.{kind}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    images, _ = load_rows(args.data, REAL_CALIBRATION)
    (args.out / "calibration").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (args.out / "calibration" / f"{i:05d}.png").write_bytes(png(image))
    images, labels = load_rows(args.data, SETTINGS)
    write_webdataset(args.out / "wds_settings", images, labels, args.data / "wds_tiny-imagenet")


if __name__ == "__main__":
    main()
