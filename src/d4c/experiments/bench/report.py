"""The result of `d4c bench` as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d4c.experiments.bench.processor import in_words

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(result: Result) -> list[Table]:
    """Two tables a tower: what each variant takes and loses, and how fast it is."""
    found = []
    for kind, tower in result["towers"].items():
        rows = [[name, *_costs(about)] for name, about in tower["variants"].items()]
        columns = ["variant", "file MB", "load s", "memory after load MB", "peak MB", "centred error"]
        found.append(Table(f"{kind} tower: size, memory, error", columns, rows))
        rows = []
        for i in range(len(next(iter(tower["variants"].values()))["runs"])):
            for name, about in tower["variants"].items():
                rows.append(_speed(name, about["runs"][i]))
        first = next(iter(tower["variants"]))
        columns = ["threads", "batch", "variant", "median ms", "p95 ms", "per s", f"times {first}"]
        found.append(Table(f"{kind} tower: speed", columns, rows))
    return found


def notes(result: Result) -> list[str]:
    """What must be known to read the tables."""
    machine, about = result["machine"], result["about"]
    said = [
        f"{about['model']}, {about['recipe']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
        f"processor: {in_words(machine)}",
        f"{result['rounds']} rounds, variants in turn; load and one thread: processor time, else wall time"
        + (", on a machine that other work shared" if machine["load"] > 0.5 else ""),
    ]
    if "calibration" in about:
        calibration = about["calibration"]
        said.append(f"quantize_static was calibrated on {calibration['images']} and {calibration['texts']} texts")
    judged = result["judged_on"]
    error = (
        f"error: the worst of {', '.join(judged['images'])}, and of {judged['texts']} texts, against the float model"
    )
    known = next(iter(result["towers"]["image"]["variants"].values()))["centred_error"] is not None
    said.append(error if known else "error: unknown without a float model; name it with --against")
    for kind, tower in result["towers"].items():
        said += [f"{kind} tower, {name}: {reason}" for name, reason in tower["failed"].items()]
        if "tokens" in tower:
            lengths = ", ".join(f"{tokens} at batch {size}" for size, tokens in tower["tokens"].items())
            said.append(f"tokens of the timed texts: {lengths}")
    return said


def markdown(result: Result) -> str:
    """Tables and notes for a file."""
    lines = [f"# {result['about']['model']}: speed", "", *(f"- {note}" for note in notes(result))]
    for table in tables(result):
        lines += ["", f"## {table.title}", "", f"| {' | '.join(table.columns)} |", "|" + "---|" * len(table.columns)]
        lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join(lines) + "\n"


def worst_error(about: Mapping[str, Any]) -> float | None:
    """The largest centred error of a variant over the sets."""
    return max(about["centred_error"].values()) if about["centred_error"] else None


def _costs(about: Mapping[str, Any]) -> list[str]:
    error = worst_error(about)
    return [
        f"{about['file_bytes'] / 1e6:.1f}",
        f"{about['load_seconds']:.2f}",
        f"{(about['loaded_bytes'] - about['before_bytes']) / 1e6:.0f}",
        f"{about['peak_bytes'] / 1e6:.0f}",
        "" if error is None else f"{error:.4f}",
    ]


def _speed(name: str, run: Mapping[str, Any]) -> list[str]:
    return [
        str(run["threads"] or "all"), str(run["batch"]), name, f"{run['median_ms']:.1f}", f"{run['p95_ms']:.1f}",
        f"{run['per_second']:.1f}", f"{run['ratio']:.2f}",
    ]  # fmt: skip
