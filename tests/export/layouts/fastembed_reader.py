"""Runs in fastembed's own environment: FOLDER IMAGE_NAME TEXT_NAME JOB.json OUT.npz; no network."""

import json
import sys
from pathlib import Path

import numpy as np
from fastembed import ImageEmbedding, TextEmbedding

folder, image_name, text_name, job, out = sys.argv[1:]
about = json.loads(Path(job).read_text())
images = ImageEmbedding(image_name, specific_model_path=f"{folder}/image", threads=1, local_files_only=True)
texts = TextEmbedding(text_name, specific_model_path=f"{folder}/text", threads=1, local_files_only=True)
np.savez(
    out, images=np.stack([*images.embed(about["pictures"])]), texts=np.stack([*texts.embed(about["texts"])])
)  # fmt: skip
