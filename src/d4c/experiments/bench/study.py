"""The whole of `d4c bench`: figures, tables and plot in one folder."""

from __future__ import annotations

import json
from typing import Any

from d4c.artifact.work import Report, appearing_whole
from d4c.experiments.bench import plot
from d4c.experiments.bench import report as reports
from d4c.experiments.bench.processor import processor
from d4c.experiments.bench.request import Request
from d4c.experiments.bench.run import measure, versions
from d4c.experiments.bench.subjects import artifact_variants, exported_folders


def run(request: Request, report: Report) -> dict[str, Any]:
    """Measure, and write bench.json, bench.md and bench.png.

    Returns:
        the content of bench.json: `about`, `machine`, `versions`, `rounds`, `judged_on`, and by tower in `towers` what
        `measure` returns.
    """
    machine = processor()  # first, so that its load is not our own
    towers, judges, about = artifact_variants(request, report) if request.is_artifact else exported_folders(request)
    work = request.work_folder / "measuring"
    result: dict[str, Any] = {
        "about": about,
        "machine": machine,
        "versions": versions(),
        "rounds": request.plan.rounds,
        "judged_on": {"images": list(judges.images), "texts": len(judges.ids)},
        "towers": {tower.kind: measure(tower, judges, request.plan, work, report) for tower in towers},
    }
    for name, text in (("bench.json", json.dumps(result, indent=1) + "\n"), ("bench.md", reports.markdown(result))):
        with appearing_whole(request.out / name) as path:
            path.write_text(text, encoding="utf-8")
    plot.draw(result, request.out / "bench.png")
    return result
