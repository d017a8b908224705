"""`torchrun … -m d4c quantize`: any number of processes make the same artifact."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d4c.artifact import read_manifest

SMALL = (
    "--recipe", "w4a8", "--threads", "1", "--set", "synthesize.images=5", "--set", "synthesize.batch=2",
    "--set", "synthesize.steps=2", "--set", "calibrate.texts=40", "--set", "reconstruct.method=closed_form",
)  # fmt: skip


def start(processes: int, model: Path, out: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Begin a run with its cache beside it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "d4c", "quantize", f"local-dir:{model}"]
    environment = os.environ | {"D4C_CACHE": str(out.parent / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--out", str(out), *SMALL, *arguments], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(run: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, error = run.communicate(timeout=300)
    return run.returncode, out, error


def content(processes: int, model: Path, out: Path, *arguments: str) -> str:
    code, _, error = finish(start(processes, model, out, *arguments))
    assert code == 0, error
    sha: str = read_manifest(out)["content_sha256"]
    return sha


@pytest.mark.parametrize("model", ["vit_folder", pytest.param("resnet_folder", marks=pytest.mark.slow)])
def test_two_and_three_processes_make_what_one_makes(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    made = {n: content(n, folder, tmp_path / str(n) / "out") for n in (1, 2, 3)}  # of 4 batches, the last is short
    assert len(set(made.values())) == 1


@pytest.mark.slow
def test_what_is_not_shared_is_the_same_too(vit_folder: Path, tmp_path: Path) -> None:
    """One optimiser over all images, and AdaRound: the paper's recipe."""
    paper = (
        "--recipe", "paper-w4a8", "--set", "reconstruct.method=adaround", "--set", "reconstruct.iterations=3",
        "--set", "reconstruct.batch=4", "--set", "synthesize.steps=2",
    )  # fmt: skip
    made = {n: content(n, vit_folder, tmp_path / str(n) / "out", *paper) for n in (1, 2)}
    assert len(set(made.values())) == 1


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_and_another_number_continues_it(vit_folder: Path, tmp_path: Path) -> None:
    expected = content(1, vit_folder, tmp_path / "whole" / "out")
    out = tmp_path / "cut" / "out"
    run = start(2, vit_folder, out)
    pieces = tmp_path / "cut" / "out.work"
    while run.poll() is None and not list(pieces.glob("reconstruct-*/*.safetensors")):
        time.sleep(0.05)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, _, error = finish(run)
    assert code != 0
    assert "another process of this job ended; the same command continues it" in error
    assert not out.exists()
    assert list(pieces.glob("reconstruct-*/*.safetensors"))
    assert content(3, vit_folder, out) == expected


def test_what_arguments_show_is_said_once(vit_folder: Path, tmp_path: Path) -> None:
    code, _, error = finish(start(2, vit_folder, tmp_path / "out", "--set", "synthesize.imags=2"))
    assert code != 0
    assert error.count("unknown key 'imags'") == 1
    assert not (tmp_path / "out").exists()
