"""What is done with a model, from its name to files and figures; the only place where stages meet."""

from d4c.pipeline.evaluation import embedding_cache, evaluate_on_data, evaluate_without_data, float_model
from d4c.pipeline.quantization import Job, load_quantized, open_encoder, prepare, quantize, run
from d4c.pipeline.synthesis import synthesize_to_folder

__all__ = [
    "Job",
    "embedding_cache",
    "evaluate_on_data",
    "evaluate_without_data",
    "float_model",
    "load_quantized",
    "open_encoder",
    "prepare",
    "quantize",
    "run",
    "synthesize_to_folder",
]
