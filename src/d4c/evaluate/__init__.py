"""The stage that says what was lost, with and without data."""

from d4c.evaluate.agreement import evaluate_without_data
from d4c.evaluate.zero_shot import ImageTask, Prediction, classify, labelled, load_task, paired, result_json

__all__ = [
    "ImageTask",
    "Prediction",
    "classify",
    "evaluate_without_data",
    "labelled",
    "load_task",
    "paired",
    "result_json",
]
