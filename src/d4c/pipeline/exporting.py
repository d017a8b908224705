"""From models to what graphs are built from."""

from __future__ import annotations

from d4c.export.source import Source
from d4c.models import Clip
from d4c.models.folding import fold_batchnorm


def float_source(clip: Clip) -> Source:
    """See a float model as what a graph is built from; its BatchNorms are folded."""
    folded = fold_batchnorm(clip)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in folded.state_dict().items()}
    return Source(folded.config, arrays, {}, {}, clip.preprocess, clip.tokenizer, clip.source, clip.fingerprint)
