"""What is done with a model, from its name to files and figures; the only place where stages meet."""

from d4c.pipeline.evaluation import embedding_cache, evaluate_on_data, evaluate_without_data
from d4c.pipeline.exporting import export_model
from d4c.pipeline.quantization import Job, load_quantized, open_encoder, prepare, quantize, run
from d4c.pipeline.synthesis import synthesize_to_folder
from d4c.pipeline.verification import Verification, verify

__all__ = [
    "Job",
    "Verification",
    "embedding_cache",
    "evaluate_on_data",
    "evaluate_without_data",
    "export_model",
    "load_quantized",
    "open_encoder",
    "prepare",
    "quantize",
    "run",
    "synthesize_to_folder",
    "verify",
]
