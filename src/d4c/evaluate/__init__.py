"""The stage that says what was lost, with and without data."""

from d4c.evaluate.agreement import evaluate_without_data
from d4c.evaluate.data_sets import find_set
from d4c.evaluate.embedding_cache import EmbeddingCache
from d4c.evaluate.retrieval import Retrieval, paired_retrieval, retrieve
from d4c.evaluate.tasks import CaptionTask, ImageTask, Task, class_texts, load_task
from d4c.evaluate.zero_shot import Prediction, classify, paired, predict, result_json, zero_shot_classifier

__all__ = [
    "CaptionTask",
    "EmbeddingCache",
    "ImageTask",
    "Prediction",
    "Retrieval",
    "Task",
    "class_texts",
    "classify",
    "evaluate_without_data",
    "find_set",
    "load_task",
    "paired",
    "paired_retrieval",
    "predict",
    "result_json",
    "retrieve",
    "zero_shot_classifier",
]
