import dataclasses
import json
import shutil
from collections import Counter
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from d4c import reconstruct, synthesize
from d4c.cli.main import main
from d4c.errors import RunError, UsageError
from d4c.experiments import cells, compare
from d4c.experiments.cells import Place
from d4c.experiments.grid import Grid, read_grid
from d4c.models import TorchEncoder

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
GRID = """
dataset = "wds/colours"
seeds = [0, 1]
synthesis_factor = 1500
reconstruction_factor = 10000
[set]
synthesize.images = 4
synthesize.batch = 4
calibrate.texts = 6
[[run]]
models = ["MODEL"]
recipes = ["paper-w4a8", "paper-w6a6"]
methods = ["real", "baseline", "bns", "d4c-3"]
"""


class Inline(Executor):
    """Does in this process what a pool of them would."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def grid(tmp_path: Path, vit_folder: Path) -> Grid:
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace("MODEL", f"local-dir:{vit_folder}"))
    return read_grid(path)


@pytest.fixture
def place(tmp_path: Path, data: Path, pictures: Path) -> Place:
    return Place(tmp_path / "out", data, pictures, "cpu")


def silent(_: str, __: int, ___: int) -> None:
    pass


def run(grid: Grid, place: Place) -> list[dict[str, Any]]:
    return compare.run(grid, place, Inline(), threads=1, report=silent)


def without_time(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in results]


def test_cells_share_what_they_can_and_are_done_once(grid: Grid, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    original = {"synthesize": synthesize.run, "reconstruct": reconstruct.learn.learn, "walk": reconstruct.run}

    def count(name: str) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            calls["text" if named.get("towers") == ["text"] else name] += 1
            return original[name](*arguments, **named)

        return counted

    monkeypatch.setattr(synthesize, "run", count("synthesize"))
    monkeypatch.setattr(reconstruct.towers, "learn", count("reconstruct"))
    monkeypatch.setattr(reconstruct, "run", count("walk"))
    first = run(grid, place)
    assert len(first) == 2 * 4 * 2
    refused = [r for r in first if "refused" in r]
    assert {r["cell"]["method"] for r in refused} == {"bns"}  # a ViT has no BatchNorm
    assert len(refused) == 2 * 2
    assert calls["synthesize"] == 2 * 2  # baseline and d4c-3, each seed, for both recipes at once
    image_units, text_units = 12, 12
    assert calls["reconstruct"] == 2 * 2 * text_units + 2 * 2 * 3 * image_units  # recipes x seeds (x methods)
    assert calls["text"] == 2 * 2  # recipes x seeds: a finished tower is not walked through again
    calls.clear()
    assert run(grid, place) == first
    assert not calls


def test_every_kind_of_work_is_announced_before_its_first_piece_is_done(
    grid: Grid, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    monkeypatch.setattr(compare, "do", lambda task: events.append(task.kind) or {})
    one = dataclasses.replace(grid, cells=tuple(c for c in grid.cells if c.method == "d4c-3")[:1])
    compare.run(one, place, Inline(), threads=1, report=lambda *progress: events.append(progress))
    assert events == [
        ("image sets", 0, 1), "images", ("image sets", 1, 1),
        ("text towers", 0, 1), "text", ("text towers", 1, 1),
        ("cells", 0, 1), "cell", ("cells", 1, 1),
    ]  # fmt: skip


def test_cells_with_one_text_tower_embed_the_classes_once(
    grid: Grid, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (c for c in grid.cells if c.method in ("real", "d4c-3") and (c.label, c.seed) == ("paper-w4a8", 0))
    alone = cells.run_cell(grid, second, dataclasses.replace(place, out=tmp_path / "alone"), silent)
    cells.run_cell(grid, first, place, silent)
    monkeypatch.setattr(TorchEncoder, "encode_text", None)
    shared = cells.run_cell(grid, second, place, silent)
    assert without_time([shared]) == without_time([alone])


def test_results_hold_what_tables_need(grid: Grid, place: Place) -> None:
    for result in run(dataclasses.replace(grid, cells=grid.cells[:3]), place):
        for tower in ("float", "both", "image"):
            about = result["predictions"][tower]
            assert len(about["right"]) == 12
            assert about["acc1"] == about["right"].count("1") / 12
            assert about["score_error"] == 0 if tower == "float" else about["score_error"] > 0
        assert set(result["reconstruction"]["text"]) == {"8", result["cell"]["label"][-3]}
        path = place.out / "cells" / f"{cells.Cell(**result['cell']).name}.json"
        assert json.loads(path.read_text()) == result


def test_other_settings_are_measured_again(grid: Grid, place: Place) -> None:
    few = dataclasses.replace(grid, cells=grid.cells[:2])
    first = run(few, place)
    again = run(dataclasses.replace(few, overrides=(*few.overrides, "calibrate.texts=5")), place)
    assert [r["settings"] for r in first] != [r["settings"] for r in again]


def test_each_of_a_grids_own_recipes_has_its_text_tower_made_first(
    tmp_path: Path, vit_folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = '[recipe.plain]\nfrom = "paper-w4a8"\nreconstruct.method = "none"\n[[run]]'
    text = GRID.replace("MODEL", f"local-dir:{vit_folder}").replace("[[run]]", own).replace('"paper-w6a6"', '"plain"')
    (tmp_path / "own.toml").write_text(text.replace('"real", "baseline", "bns", "d4c-3"', '"real"'))
    made: Counter[str] = Counter()
    monkeypatch.setattr(compare, "do", lambda task: made.update([f"{task.kind} {task.cell.label}"]) or {})
    run(read_grid(tmp_path / "own.toml"), place)
    assert made == {f"{kind} {label}": 2 for kind in ("text", "cell") for label in ("paper-w4a8", "plain")}  # seeds


def test_methods_of_two_names_share_their_images(
    tmp_path: Path, vit_folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GRID.replace("MODEL", f"local-dir:{vit_folder}").replace('"real", "baseline", "bns"', '"baseline", "pse"')
    (tmp_path / "names.toml").write_text(text)
    made: Counter[str] = Counter()
    monkeypatch.setattr(compare, "do", lambda task: made.update([f"{task.kind} {task.cell.seed}"]) or {})
    run(read_grid(tmp_path / "names.toml"), place)
    assert all(made[f"images {seed}"] == 2 for seed in (0, 1))  # of baseline, which is pse in a ViT, and of d4c-3


def test_another_data_set_of_that_name_is_measured_anew(grid: Grid, place: Place, tmp_path: Path) -> None:
    few = dataclasses.replace(grid, cells=grid.cells[:1])
    first = run(few, place)
    shutil.copytree(place.root, tmp_path / "moved")
    again = run(few, dataclasses.replace(place, root=tmp_path / "moved"))
    assert first[0]["settings"] != again[0]["settings"]


def test_what_only_images_go_through_makes_no_other_text_tower(grid: Grid, place: Place) -> None:
    def folder(*overrides: str) -> Path:
        changed = dataclasses.replace(grid, overrides=(*grid.overrides, *overrides))
        return cells.text_folder(cells.set_up(changed, grid.cells[0], place))

    assert folder() == folder("reconstruct.crops=2") == folder("calibrate.outliers=20")
    assert folder() != folder("calibrate.texts=5")


def test_seeds_draw_different_real_pictures(grid: Grid, place: Place) -> None:
    real = [c for c in grid.cells if c.method == "real" and c.label == "paper-w4a8"]
    sets = [cells.image_set(cells.set_up(grid, cell, place), silent).pixels for cell in real]
    assert len(sets[0]) == len(sets[1]) == 4
    assert not (sets[0] == sets[1]).all()


def test_an_interrupted_cell_ends_as_if_it_had_not_been(
    grid: Grid, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        """Like a kill: nothing catches it."""

    cell = grid.cells[2]

    def crash(label: str, done: int, total: int) -> None:
        if label == "reconstruct" and done >= total / 2:
            raise Crash

    with pytest.raises(Crash):
        cells.run_cell(grid, cell, place, crash)
    whole = Place(tmp_path / "whole", place.root, place.real, "cpu")
    resumed, uninterrupted = (cells.run_cell(grid, cell, p, silent) for p in (place, whole))
    assert without_time([resumed]) == without_time([uninterrupted])


def test_a_damaged_image_set_is_made_again(grid: Grid, place: Place) -> None:
    setup = cells.set_up(grid, next(c for c in grid.cells if c.method == "d4c-3"), place)
    first = cells.image_set(setup, silent)
    (path,) = (place.out / "images").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert (cells.image_set(setup, silent).pixels == first.pixels).all()


@pytest.mark.parametrize("lacks", ["real", "folder", "data"])
def test_what_is_missing_is_said_before_any_work(lacks: str, grid: Grid, place: Place, tmp_path: Path) -> None:
    missing = {
        "real": dataclasses.replace(place, real=None),
        "folder": dataclasses.replace(place, real=tmp_path / "nowhere"),
        "data": dataclasses.replace(place, root=tmp_path),
    }
    with pytest.raises(UsageError):
        run(grid, missing[lacks])
    assert not place.out.exists()


def test_a_failing_cell_is_named_and_the_others_are_done(
    grid: Grid, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = dataclasses.replace(grid, cells=grid.cells[:3])
    broken = grid.cells[0]
    original = cells.image_tower

    def fail(setup: cells.Setup, *arguments: Any) -> Any:
        if setup.cell == broken:
            raise RunError("no luck")
        return original(setup, *arguments)

    monkeypatch.setattr(cells, "image_tower", fail)
    with pytest.raises(RunError, match=f"1 of 3 cells failed; the first: {broken.name}"):
        run(grid, place)
    assert len(list((place.out / "cells").glob("*.json"))) == 2


@pytest.mark.parametrize("where", [["--jobs", "2"], ["--ray"]])
def test_the_command_writes_table_and_plot_from_processes_of_their_own(
    where: list[str], grid: Grid, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default Ray's processes wait for all others
    text = (tmp_path / "grid.toml").read_text().replace('"real", "baseline", "bns", "d4c-3"', '"real", "bns"')
    (tmp_path / "grid.toml").write_text(text.replace(', "paper-w6a6"', "").replace("[0, 1]", "[0]"))
    monkeypatch.chdir(tmp_path)
    command = ["compare", "grid.toml", "--root", str(place.root), "--real", str(place.real), *where]
    monkeypatch.setattr("sys.argv", ["d4c", *command, "--device", "cpu"])
    with pytest.raises(SystemExit) as exit_:
        main()
    printed = capsys.readouterr().out
    assert exit_.value.code == 0
    assert (tmp_path / "grid" / "table.md").read_text() == printed
    rows = json.loads((tmp_path / "grid" / "table.json").read_text())["rows"]
    assert {(row["method"], row["tower"]) for row in rows} == {("real", "both"), ("real", "image")}
    assert "| real |" in printed
    assert "not possible" in printed
    assert (tmp_path / "grid" / "losses.png").exists()


def test_ray_and_jobs_exclude_each_other(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["d4c", "compare", "grid.toml", "--root", "data", "--jobs", "2", "--ray"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert not (tmp_path / "grid").exists()
