"""The grid: what runs, what is not run again, how strengths are chosen, and what the tables say."""

import csv
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

import train
from tests.conftest import ROOT, SHORT_RUN
from zu_lightning import InputError, Results
from zu_lightning.comparison import command, execution
from zu_lightning.comparison.execution import Slot, error_in, run_here, run_on_cluster, slots
from zu_lightning.comparison.figures import abilities, draw_downstream, draw_frontier, draw_representations, frontier
from zu_lightning.comparison.plan import Grid, Run
from zu_lightning.comparison.tables import (
    Cell,
    attack_table,
    best,
    latex,
    markdown,
    published_rows,
    rows_of,
    table,
    write_tidy,
)
from zu_lightning.comparison.tuning import balance, balances, chosen_strengths
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.ability import TaskResult, write_downstream
from zu_lightning.report.pictures import pictures_in
from zu_lightning.tracing.representations import LayerRepresentations, Plane, RepresentationMap, Shift

SMALL: dict[str, Any] = {
    "models": {"demo": "configs/demo.yaml"},
    "data": {"2 facts": {"options": {"data.forget_num": 2}}},
    "methods": {
        "MEMIT": {
            "configs": "configs/methods/memit.yaml",
            "strength": "method.retain_weight",
            "strengths": [0.1, 0.3],
        },
        "ROME": "configs/methods/rome.yaml",
    },
    "seeds": [1, 2],
    "tuning_seeds": [101],
}


def read(folder: Path, **changes: Any) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return Grid.read(path, folder / "out")


def scores(efficacy: float, kept: float = 100.0, perplexity: float = 4.0) -> dict[str, float]:
    return {
        "efficacy": efficacy, "generalization": efficacy, "specificity": kept, "retain": kept,
        "perplexity": perplexity, "efficacy_token_accuracy": 50.0,
    }  # fmt: skip


def finish(run: Run, after: dict[str, float]) -> None:
    """Write what a run that has succeeded leaves."""
    folder = run.folder / "lightning_logs" / "version_0"
    Results(
        before=scores(100.0), after=after, facts=2, seconds={"solve": 0.5}, peak_memory_gib=1.0, model="m",
        method={"name": run.method}, targets=None, layers={}, forgotten=["a"],
        attacks={"rank": {"base": 1.0, "edited": after["efficacy"] / 100, "gold": 0.125}},
        comparisons={"mean_gap": 0.25},
    ).write(folder)  # fmt: skip
    run.finish()


def test_every_method_runs_on_every_draw_with_the_strength_that_was_chosen(tmp_path: Path) -> None:
    grid = read(tmp_path)
    tuning, runs = grid.tuning_runs(), grid.runs({("demo", "2 facts", "MEMIT"): 0.3})
    assert [(run.method, run.seed, run.strength) for run in tuning] == [("MEMIT", 101, 0.1), ("MEMIT", 101, 0.3)]
    assert [(run.seed, run.method) for run in runs] == [(1, "MEMIT"), (1, "ROME"), (2, "MEMIT"), (2, "ROME")]
    assert "--method.retain_weight=0.3" in runs[0].arguments
    assert not any("retain_weight" in argument for argument in runs[1].arguments)
    assert {"--data.forget_num=2", "--data.seed=2", "--config=configs/demo.yaml"} <= set(runs[3].arguments)
    assert len({run.folder for run in (*tuning, *runs)}) == 6


def test_later_parts_and_options_win(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"options": {"data.forget_num": 3, "data.retain_num": 4}}))
    run = Grid.read(path, tmp_path, {"data.retain_num": "5"}).runs({})[0]
    assert {"--data.forget_num=3", "--data.retain_num=5"} <= set(run.arguments)


def test_a_method_may_have_options_of_its_own_for_a_model(tmp_path: Path) -> None:
    method = {"options": {"model.layers": [1]}, "by_model": {"two": {"model.layers": [2]}}}
    grid = read(tmp_path, models={"one": None, "two": None}, methods={"m": method}, seeds=[1])
    assert [[a for a in run.arguments if "layers" in a] for run in grid.runs({})] == [
        ["--model.layers=[1]"],
        ["--model.layers=[2]"],
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": []}, "config is .*: a grid has models, data, methods, and seeds; this one does not know colors"),
        ({"like": "no.yaml"}, "like is 'no.yaml': give the path of another grid"),
        ({"seeds": []}, r"seeds is \[\]: give a list of whole numbers"),
        ({"seeds": 1}, "seeds is 1: give a list of whole numbers"),
        ({"models": "configs/demo.yaml"}, "models is 'configs/demo.yaml': give a mapping"),
        ({"models": {"a b": None, "a_b": None}}, "models is 'a b': a folder is named after it"),
        ({"models": {"a/b": None}}, "models is 'a/b': a folder is named after it"),
        (
            {"methods": {"m": {"strength": "x", "strengths": ["a"]}}},
            r"methods\.m\.strengths is .*: give a list of numbers",
        ),
        ({"tuning_seeds": []}, r"methods\.MEMIT\.strengths is .*: add tuning_seeds to choose one on"),
        ({"methods": {"m": {"by_model": {"x": {}}}}}, r"methods\.m\.by_model is 'x': there are only demo"),
        ({"headline": {"x": "exact_match"}}, "headline is 'x': there are only 2 facts"),
        ({"headline": {"2 facts": "x"}}, "headline is 'x': there are only exact_match, token_accuracy"),
        ({"protocol": "x"}, "protocol is 'x': there are only few, many"),
        ({"first": "x"}, "first is 'x': there are only MEMIT, ROME"),
        ({"models": {"m": "configs/no.yaml"}}, r"models\.m\.configs is 'configs/no\.yaml': there is no such file"),
        ({"models": {"m": {"color": 1}}}, r"models\.m is .*: give a path, a list of paths, or a mapping"),
        ({"methods": {"m": {"strengths": [1]}}}, r"methods\.m is .*: give both strength, an option, and strengths"),
        ({"tuning_seeds": [2, 3]}, r"tuning_seeds is \[2\]: these seeds are reported, too"),
    ],
)
def test_a_malformed_grid_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, **changes)


def test_a_file_that_is_no_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it cannot be read"):
        Grid.read(tmp_path / "none.yaml", tmp_path)


def test_a_run_counts_as_finished_only_with_the_very_same_arguments(tmp_path: Path) -> None:
    run = read(tmp_path).runs({})[0]
    assert run.results is None
    finish(run, scores(5.0))
    assert run.results is not None
    assert read(tmp_path).runs({})[0].results is not None
    assert read(tmp_path, options={"data.retain_num": 7}).runs({})[0].results is None


def test_a_run_is_not_finished_when_its_configuration_has_changed(tmp_path: Path) -> None:
    config = tmp_path / "method.yaml"
    config.write_text("model: {layers: [0]}")
    run = read(tmp_path, methods={"m": str(config)}).runs({})[0]
    finish(run, scores(5.0))
    assert run.results is not None
    config.write_text("model: {layers: [1]}")
    assert run.results is None


def test_a_failure_is_remembered_until_the_run_succeeds(tmp_path: Path) -> None:
    run = read(tmp_path).runs({})[0]
    run.folder.mkdir(parents=True)
    run.finish("out of memory")
    assert (run.error, run.results) == ("out of memory", None)
    finish(run, scores(5.0))
    assert run.error == ""


def test_the_balance_is_a_harmonic_mean_of_what_is_gone_and_what_is_left() -> None:
    def of(after: dict[str, float]) -> float:
        results = Results(scores(100.0), after, 1, {}, 0.0, "m", {"name": "n"}, None, {}, [])
        return balance(results, "exact_match")

    assert of(scores(0.0)) == 1
    assert of(scores(50.0, kept=50.0)) == pytest.approx(5 / (1 / 0.5 * 4 + 1))
    assert of(scores(0.0, perplexity=8.0)) == pytest.approx(5 / (4 + 2))
    assert of(scores(0.0, kept=110.0, perplexity=3.0)) == 1
    assert of(scores(100.0)) == of(scores(0.0, kept=0.0)) == of(scores(0.0, perplexity=math.nan)) == 0


def test_the_strength_with_the_highest_balance_is_chosen(tmp_path: Path) -> None:
    grid = read(tmp_path, tuning_seeds=[101, 102])
    runs = grid.tuning_runs()
    for run in runs:
        finish(run, scores(10.0 if run.strength == 0.3 else 20.0))
    cell = ("demo", "2 facts", "MEMIT")
    assert chosen_strengths(grid, runs) == {cell: 0.3}
    assert balances(grid, runs)[cell].keys() == {0.1, 0.3}
    next(run for run in runs if run.strength == 0.3).finish("out of memory")
    assert chosen_strengths(grid, runs) == {cell: 0.1}


@pytest.fixture
def done(tmp_path: Path) -> tuple[Grid, list[Run]]:
    """MEMIT forgets and keeps less than ROME, which does not forget; one run has failed."""
    grid = read(tmp_path)
    runs = grid.runs({})
    finish(runs[0], scores(10.0, 90.0))
    finish(runs[1], scores(90.0, 99.0))
    finish(runs[2], scores(20.0, 80.0, perplexity=6.0))
    runs[3].folder.mkdir(parents=True)
    runs[3].finish("it broke")
    return grid, runs


def test_a_table_has_means_and_deviations_and_the_best_of_those_that_forget(done: tuple[Grid, list[Run]]) -> None:
    lines = table(*done, "demo", "2 facts")
    assert lines[0] == ["Method", "Eff.", "Gen.", "Spe.", "Ret.", "PPL"]
    assert lines[1][:2] == ["Base", "100.00 ± 0.00"]
    assert lines[2] == ["MEMIT", *["**15.00 ± 7.07**"] * 2, *["**85.00 ± 7.07**"] * 2, "**5.00 ± 1.41**"]
    assert lines[3] == ["ROME (1 of 2 runs)", "90.00", "90.00", "99.00", "99.00", "4.00"]


def test_a_method_that_destroys_the_model_is_not_the_best(tmp_path: Path) -> None:
    grid = read(tmp_path)
    runs = grid.runs({})
    for run in runs:
        destroys = run.method == "ROME"
        finish(run, scores(0.0 if destroys else 40.0, perplexity=math.nan if destroys else 5.0))
    assert {method for method, _ in best(rows_of(grid, runs, "demo", "2 facts"))} == {"MEMIT"}
    assert table(grid, runs, "demo", "2 facts")[3] == ["ROME", *["0.00 ± 0.00"] * 2, *["100.00 ± 0.00"] * 2, "> 1000"]


def test_a_method_that_failed_everywhere_has_a_row(done: tuple[Grid, list[Run]]) -> None:
    grid, runs = done
    runs[1].finish("it broke")
    assert table(grid, runs, "demo", "2 facts")[3] == ["ROME (0 of 2 runs)", *["failed"] * 5]


def test_what_others_can_share_runs_first(tmp_path: Path) -> None:
    grid = read(tmp_path, first="ROME", data={"a": None, "b": None}, tuning_seeds=[101])
    waves = [[(run.data, run.seed, run.method) for run in wave] for wave in grid.waves(grid.runs({}))]
    assert waves[0] == [("a", 1, "ROME")]
    assert waves[1] == [("a", 2, "ROME"), ("b", 1, "ROME"), ("b", 2, "ROME")]
    assert {method for _, _, method in waves[2]} == {"MEMIT"}
    both = read(tmp_path, first=["ROME", "MEMIT"]).waves(grid.runs({}))
    assert [run.method for run in both[0]] == ["MEMIT", "ROME"]
    strengths = [[run.strength for run in wave] for wave in read(tmp_path, first="MEMIT").waves(grid.tuning_runs())]
    assert strengths == [[0.1], [0.1], [0.3, 0.3]]


def test_a_grid_may_be_like_another_one(tmp_path: Path) -> None:
    read(tmp_path, seeds=[7])
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"like": str(tmp_path / "grid.yaml"), "models": {"m": None}}))
    grid = Grid.read(tmp_path / "other.yaml", tmp_path)
    assert (list(grid.models), grid.seeds, list(grid.methods)) == (["m"], (7,), ["MEMIT", "ROME"])


def test_the_headline_may_be_token_accuracy(done: tuple[Grid, list[Run]]) -> None:
    grid, runs = done
    grid.headline["2 facts"] = "token_accuracy"
    assert rows_of(grid, runs, "demo", "2 facts")["MEMIT"]["efficacy"] == Cell(50.0, 0.0)


def test_a_destroyed_model_has_a_perplexity_above_1000() -> None:
    assert Cell(math.nan).text("perplexity") == Cell(math.inf).text("perplexity") == "> 1000"
    assert Cell.of([math.nan, 1.0]).text("perplexity") == Cell.of([math.inf, 1.0]).text("perplexity") == "> 1000"
    assert Cell(1000.0).text("perplexity") == "1000.00"


def test_markdown_and_latex() -> None:
    lines = [["Method", "Eff."], ["A_B", "**1.00 ± 2.00**"], ["C", "> 1000"]]
    assert markdown(lines) == "| Method | Eff. |\n|---|---:|\n| A_B | **1.00 ± 2.00** |\n| C | > 1000 |"
    assert r"A\_B & \textbf{1.00 $\pm$ 2.00} \\" in latex(lines)
    assert r"C & $>$ 1000 \\" in latex(lines)


def test_every_run_is_a_row_also_a_failed_one(done: tuple[Grid, list[Run]], tmp_path: Path) -> None:
    write_tidy(done[1], tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "finished", "finished", "it broke"]
    assert (rows[0]["efficacy_before"], rows[0]["efficacy"], rows[0]["seconds_solve"]) == ("100.0", "10.0", "0.5")
    assert (rows[0]["attack_rank_before"], rows[0]["attack_rank"], rows[0]["attack_rank_gold"]) == (
        "1.0",
        "0.1",
        "0.125",
    )
    assert rows[0]["mean_gap"] == "0.25"
    assert rows[3]["efficacy"] == ""
    assert pyarrow.parquet.read_table(tmp_path / "runs.parquet").column("efficacy").to_pylist() == [10, 90, 20, None]


def test_attacks_have_a_table_with_base_and_gold(done: tuple[Grid, list[Run]]) -> None:
    grid, runs = done
    assert attack_table(grid, runs, "demo", "2 facts") == [
        ["Method", "Rank", "Mean gap"],
        ["Base", "100.00 ± 0.00", ""],
        ["Gold", "12.50 ± 0.00", ""],
        ["MEMIT", "15.00 ± 7.07", "25.00 ± 0.00"],
        ["ROME (1 of 2 runs)", "90.00", "25.00"],
    ]
    assert attack_table(grid, [], "demo", "2 facts") == []


def test_published_figures_stand_beside_ours_where_the_model_is_the_papers(tmp_path: Path) -> None:
    grid = read(tmp_path, models={"Qwen-3": "configs/demo.yaml"}, data={"zsRE": None}, protocol="few")
    rows = published_rows(grid, "Qwen-3", "zsRE")
    assert rows["AlphaEdit"]["efficacy"] == Cell(28.52, 3.30)
    assert published_rows(grid, "demo", "zsRE") == {}
    run = grid.runs({})[0]
    finish(run, scores(3.0))
    assert [line[0] for line in table(grid, [run], "Qwen-3", "zsRE")] == [
        "Method",
        "Base",
        "Base (published)",
        "MEMIT",
        "ROME",
    ]


def test_general_ability_is_drawn_for_all_methods_if_it_was_measured(tmp_path: Path) -> None:
    grid = read(tmp_path)
    runs = grid.runs({})
    assert draw_downstream(runs, "demo", "2 facts", tmp_path) is None
    for i, run in enumerate(runs):
        finish(run, scores(0.0))
        after = TaskScore(70.0 + 2 * i, 3.0)
        write_downstream(
            {"rte": TaskResult("RTE", "accuracy", 200, 55.0, TaskScore(80.0, 3.0), after)},
            run.folder / "lightning_logs" / "version_0",
        )
    assert [(run.method, run.seed) for run in runs] == [("MEMIT", 1), ("ROME", 1), ("MEMIT", 2), ("ROME", 2)]
    tasks, models = abilities(runs, "demo", "2 facts")
    assert list(tasks) == ["rte"]
    assert models == {
        "before": {"rte": TaskScore(80, 3)}, "MEMIT": {"rte": TaskScore(72, 3)}, "ROME": {"rte": TaskScore(74, 3)},
    }  # fmt: skip
    assert draw_downstream(runs, "demo", "2 facts", tmp_path)
    (picture,) = pictures_in(tmp_path)
    assert (picture.name, picture.title) == ("downstream-demo-2-facts", "General ability: demo, 2 facts")
    assert "before 80 ± 3, MEMIT 72 ± 3, ROME 74 ± 3" in picture.description


def test_the_frontier_goes_through_every_strength(tmp_path: Path) -> None:
    grid = read(tmp_path)
    runs = grid.tuning_runs()
    for run, efficacy in zip(runs, (10.0, 60.0), strict=True):
        finish(run, scores(efficacy, kept=50 + efficacy / 2))
    assert frontier(grid, runs, "demo", "2 facts", "retain") == {"MEMIT": [(10.0, 55.0), (60.0, 80.0)]}
    assert draw_frontier(grid, runs, "demo", "2 facts").read_bytes().startswith(b"\x89PNG")
    (picture,) = pictures_in(grid.folder)
    assert picture.name == "frontier-demo-2-facts"
    assert ">MEMIT<" in picture.svg


def test_what_is_finished_is_not_run_again_and_what_failed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    executed: list[str] = []

    def pretend(run: Run, entry: object, slot: object) -> str:
        executed.append(run.name)
        if run.method == "ROME" and len(executed) < 7:
            run.folder.mkdir(parents=True, exist_ok=True)
            run.finish("it broke")
            return "it broke"
        finish(run, scores(10.0))
        return ""

    monkeypatch.setattr(execution, "execute", pretend)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(SMALL))
    arguments = ["--config", str(tmp_path / "grid.yaml"), "--folder", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="The same command tries them again"):
        command.main(arguments, train.main)
    assert len(executed) == 6
    command.main(arguments, train.main)
    assert len(executed) == 8
    assert all("ROME" in name for name in executed[6:])
    assert "| ROME |" in (tmp_path / "out" / "tables.md").read_text()
    assert "**0.1: " in (tmp_path / "out" / "strengths.md").read_text()
    command.main([*arguments, "--dry-run"], train.main)
    assert len(executed) == 8
    assert "4 of 4 runs are finished" in caplog.text


def test_a_cell_is_an_ordinary_fit_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = dict(option.removeprefix("--").split("=", 1) for option in SHORT_RUN)
    grid = read(tmp_path, options=options, seeds=[1])
    good, bad = grid.runs({})
    bad = Run(**vars(bad) | {"arguments": (*bad.arguments, "--data.forget_num=-1")})
    ended: dict[str, str] = {}
    run_here([good, bad], train.main, slots(1), lambda run, error: ended.update({run.method: error}))
    assert ended["MEMIT"] == ""
    assert good.results is not None
    assert good.results.method["name"] == "Memit"
    assert "--data.forget_num is -1" in ended["ROME"]
    assert bad.error == ended["ROME"]


@pytest.mark.slow
def test_a_grid_that_was_killed_redoes_no_finished_run(tmp_path: Path) -> None:
    options = dict(option.removeprefix("--").split("=", 1) for option in SHORT_RUN)
    methods = {name: f"configs/methods/{name.lower()}.yaml" for name in ("MEMIT", "ROME")}
    runs = read(tmp_path, options=options, methods=methods, tuning_seeds=[]).runs({})
    words = [sys.executable, "train.py", "compare", "--config", str(tmp_path / "grid.yaml")]
    words += ["--folder", str(tmp_path / "out")]
    grid = subprocess.Popen(words, cwd=ROOT)
    while runs[1].results is None:
        assert grid.poll() is None
        time.sleep(0.1)
    grid.kill()
    grid.wait()
    finished = {run.name: (run.folder / "finished").stat().st_mtime_ns for run in runs if run.results}
    assert 2 <= len(finished) < len(runs)
    subprocess.run(words, cwd=ROOT, check=True)
    assert all(run.results for run in runs)
    assert all((Path(name) / "finished").stat().st_mtime_ns == when for name, when in finished.items())
    assert "| ROME |" in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.slow
def test_cells_are_submitted_to_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")

    def instead(run: Run, entry: object) -> str:
        (run.folder / "was_here").touch()
        return "" if run.method == "MEMIT" else str(1 / 0)

    monkeypatch.setattr(execution, "execute", instead)
    runs = read(tmp_path, seeds=[1]).runs({})
    for run in runs:
        run.folder.mkdir(parents=True)
    ended: dict[str, str] = {}
    options = {"cluster": "local", "timeout_min": 5}
    run_on_cluster(runs, train.main, tmp_path / "jobs", options, lambda run, error: ended.update({run.method: error}))
    assert all((run.folder / "was_here").exists() for run in runs)
    assert ended["MEMIT"] == ""
    assert "ZeroDivisionError" in ended["ROME"]
    assert runs[1].error == ended["ROME"]


def test_options_that_the_cluster_does_not_take_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=r"cluster-options is .*: submitit does not take them"):
        run_on_cluster([], train.main, tmp_path, {"cluster": "local", "timeout_min": "soon"}, lambda run, error: None)


def test_values_of_options_are_what_yaml_says() -> None:
    assert command.named_values(["a=1", "b=c=d"]) == {"a": "1", "b": "c=d"}


def test_only_gpus_that_were_lent_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert slots(None) == [Slot("2"), Slot("3")]
    assert slots(1) == [Slot("2")]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert slots(None) == [Slot("0"), Slot("1")]


def test_the_error_is_found_among_what_was_printed() -> None:
    assert error_in("a\nValueError: b\n\nc\n") == "ValueError: b"
    assert error_in("a\nc\n") == "c"
    assert error_in("") == "no output"


def test_a_protocol_that_ships_is_a_grid() -> None:
    protocols = sorted((ROOT / "configs" / "protocols").glob("*.yaml"))
    grids = [path for path in protocols if {"methods", "like"} & yaml.safe_load(path.read_text()).keys()]
    assert len(grids) >= 7
    for path in grids:
        assert Grid.read(path, Path("out")).runs({})


def test_methods_that_wrote_representations_are_drawn_side_by_side(tmp_path: Path) -> None:
    grid = read(tmp_path)
    runs = grid.runs({("demo", "2 facts", "MEMIT"): 0.3})
    assert draw_representations(grid, runs, "demo", "2 facts") == []
    plane = Plane((0.5, 0.25), ((0.0, 0.0),), ((1.0, 1.0),))
    found = RepresentationMap(
        ("a",), ("forget",), (LayerRepresentations(0, plane, plane, {"forget": Shift(1, *[None] * 3)}),)
    )
    for run in runs:
        finish(run, scores(10.0))
        if run.seed == 2 or run.method == "ROME":
            found.write(run.folder / "lightning_logs" / "version_0")
    names = [path.name for path in draw_representations(grid, runs, "demo", "2 facts")]
    assert names == [f"representations-demo-2-facts-seed-{seed}-layer-0.png" for seed in (1, 2)]
    first, second = pictures_in(grid.folder)
    assert "MEMIT" not in first.description
    assert "MEMIT, forget: " in second.description
    assert "ROME, forget: " in second.description
