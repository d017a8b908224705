"""The stage that says what was lost, with and without data."""

from d4c.evaluate.agreement import centred_error, evaluate_without_data, unit
from d4c.evaluate.data_sets import find_set
from d4c.evaluate.embedding_cache import EmbeddingCache
from d4c.evaluate.retrieval import Retrieval, paired_retrieval, retrieve
from d4c.evaluate.tasks import CaptionTask, ImageTask, Task, load_task
from d4c.evaluate.zero_shot import (
    LOGIT_FACTOR,
    Prediction,
    classify,
    paired,
    predict,
    result_json,
    zero_shot_classifier,
)

__all__ = [
    "LOGIT_FACTOR",
    "CaptionTask",
    "EmbeddingCache",
    "ImageTask",
    "Prediction",
    "Retrieval",
    "Task",
    "centred_error",
    "classify",
    "evaluate_without_data",
    "find_set",
    "load_task",
    "paired",
    "paired_retrieval",
    "predict",
    "result_json",
    "retrieve",
    "unit",
    "zero_shot_classifier",
]
