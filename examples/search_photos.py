"""Search a folder of photographs in words, on the processor alone and without torch.

    d4c export tiny-w4a8 --layout onnx
    python examples/search_photos.py tiny-w4a8-onnx PHOTOS "a red car" "children on a beach" --top 5

Embeddings are kept in an index, so that the next search embeds nothing but new and changed pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d4c.errors import D4CError, ImageFileError
from d4c.inputs import PICTURE_SUFFIXES
from d4c.runtime import Session

BETWEEN_SAVES = 500  # pictures: an interrupted run loses no more

Embedding = NDArray[np.float32]


def read_index(path: Path, model: str) -> dict[str, Embedding]:
    """Embeddings by picture, as far as they are of this model."""
    if not path.exists():
        return {}
    with np.load(path) as stored:
        if str(stored["model"]) != model:
            return {}
        return dict(zip(stored["pictures"].tolist(), stored["embeddings"], strict=True))


def write_index(path: Path, model: str, known: Mapping[str, Embedding]) -> None:
    """Replace the index by a whole one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, model=model, pictures=list(known), embeddings=np.stack(list(known.values())))
    os.replace(temporary, path)


def name_of(path: Path) -> str:
    """A picture's name in the index: another one once it has changed."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def embed(session: Session, pictures: list[Path], index: Path) -> dict[Path, Embedding]:
    """Embeddings of the pictures that can be read, out of the index or new and added to it."""
    model = f"{session.encoder.exported.fingerprint} {session.encoder.exported.content_sha256}"
    before = read_index(index, model)
    names = {path: name_of(path) for path in pictures}
    known = {name: before[name] for name in names.values() if name in before}
    missing = [path for path in pictures if names[path] not in known]
    for done, path in enumerate(missing, 1):
        try:
            known[names[path]] = session.encode_image(path)[0]
        except ImageFileError as error:
            print(error, file=sys.stderr)
        if known and (done % BETWEEN_SAVES == 0 or done == len(missing)):
            write_index(index, model, known)
    return {path: known[name] for path, name in names.items() if name in known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder that d4c export made")
    parser.add_argument("photos", type=Path, help="a folder; those in it are searched too")
    parser.add_argument("queries", nargs="+", metavar="query")
    parser.add_argument("--top", type=int, default=5, help="pictures to show for each query")
    parser.add_argument("--index", type=Path, default=Path("photos.npz"), help="where embeddings are kept")
    args = parser.parse_args()

    try:
        session = Session(args.model)
    except D4CError as error:
        parser.error(str(error))
    pictures = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    embedded = embed(session, pictures, args.index)
    if not embedded:
        parser.error(f"no pictures in {args.photos}")
    found = list(embedded)
    cosines = np.stack(list(embedded.values())) @ session.encode_text(args.queries).T  # [picture, query]
    for query, row in zip(args.queries, cosines.T, strict=True):
        print(query)
        for i in np.argsort(-row)[: args.top]:
            print(f"  {row[i]:.3f}  {found[i]}")


if __name__ == "__main__":
    main()
