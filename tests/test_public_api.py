import math
import subprocess
import sys
import time

import pytest

import d4c
import d4c.errors

NO_TORCH = """
import sys
{statement}
heavy = [m for m in ("torch", "open_clip", "torchvision", "transformers") if m in sys.modules]
assert not heavy, heavy
"""


def test_public_names_resolve_and_are_all_there_is() -> None:
    for name in d4c.__all__:
        assert getattr(d4c, name) is not None
    errors = {n for n, v in vars(d4c.errors).items() if isinstance(v, type) and issubclass(v, d4c.D4CError)}
    assert set(d4c.__all__) == errors | {"Clip", "QuantizedClip", "Recipe", "load", "load_quantized", "quantize"}
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = d4c.quantise


@pytest.mark.parametrize(
    "statement",
    [
        "import d4c",
        "import d4c.artifact, d4c.artifact.folder, d4c.artifact.open_clip_names",
        "import d4c.inputs, d4c.inputs.tokenizer, d4c.inputs.preprocess",
        "import d4c.recipes; [d4c.recipes.load_recipe(n) for n in d4c.recipes.recipe_names()]",
        "import d4c.export, d4c.export.source",
        "import d4c.runtime",
        "import d4c.errors",
        "import d4c.cli.main",
    ],
)
def test_these_imports_load_no_torch(statement: str) -> None:
    subprocess.run([sys.executable, "-c", NO_TORCH.format(statement=statement)], check=True)


def test_a_model_is_loaded_without_torchs_compiler() -> None:
    program = "import sys, d4c; d4c.load('tiny'); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_runtime_loads_no_more_than_it_needs() -> None:
    unwanted = "torch", "typer", "rich", "yaml", "safetensors", "open_clip", "onnx", "onnxruntime", "openvino"
    program = (
        f"import sys, d4c.runtime; assert not set({unwanted}) & set(sys.modules), set({unwanted}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_command_line_waits_for_no_numpy() -> None:
    program = "import sys, d4c.cli.main; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_takes_about_as_long_as_the_library_that_prints_it() -> None:
    """Beside other work a clock says little, so against a program of two commands that do nothing (0.25 s each)."""
    bare = "import typer; app = typer.Typer(); app.command('a')(id); app.command('b')(id); app(['--help'])"
    programs = {"d4c": ["-m", "d4c", "--help"], "bare": ["-c", bare]}
    seconds = {name: math.inf for name in programs}
    for _ in range(4):
        for name, arguments in programs.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    assert seconds["d4c"] < 2 * seconds["bare"], seconds
