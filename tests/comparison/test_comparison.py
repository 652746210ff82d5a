"""The comparison of methods: what runs, what is not run again, how strengths are chosen, and what the tables say."""

import csv
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest
import yaml

import train
from tests.conftest import ROOT, SHORT_RUN
from zu_lightning import InputError, Results
from zu_lightning.comparison import command, execution
from zu_lightning.comparison.execution import Slot, error_in, run_here, run_on_cluster, slots
from zu_lightning.comparison.figures import abilities, draw_downstream, draw_representations, draw_trade_off
from zu_lightning.comparison.plan import Comparison
from zu_lightning.comparison.runs import Run
from zu_lightning.comparison.tables import (
    Cell,
    attack_table,
    best,
    latex,
    markdown,
    published_rows,
    rows_of,
    table,
    tidy,
    write_tidy,
)
from zu_lightning.comparison.tuning import chosen_strengths, tuning_score, tuning_scores
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.ability import TaskResult, write_downstream
from zu_lightning.report.pictures import pictures_in
from zu_lightning.tracing.representations import LayerRepresentations, Plane, RepresentationMap, Shift

MEMIT = {
    "configs": "configs/methods/memit.yaml",
    "strength": "method.retain_weight",
    "strengths": [0.1, 0.3],
}
SMALL: dict[str, Any] = {
    "models": {"demo": "configs/demo.yaml"},
    "data": {"2 facts": {"options": {"data.forget_num": 2}}},
    "methods": {"MEMIT": MEMIT, "ROME": "configs/methods/rome.yaml"},
    "seeds": [1, 2],
    "tuning_seeds": [101],
}
PAIR = ("demo", "2 facts")
SHORT = dict(option.removeprefix("--").split("=", 1) for option in SHORT_RUN)
PROTOCOLS = [
    path
    for path in sorted((ROOT / "configs" / "protocols").glob("*.yaml"))
    if {"methods", "like"} & yaml.safe_load(path.read_text()).keys()
]


def read(folder: Path, **changes: Any) -> Comparison:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes))
    return Comparison.read(path, folder / "out")


def scores(efficacy: float, kept: float = 100.0, perplexity: float = 4.0) -> dict[str, float]:
    return {
        "efficacy": efficacy, "generalization": efficacy, "specificity": kept, "retain": kept,
        "perplexity": perplexity, "efficacy_token_accuracy": 50.0,
    }  # fmt: skip


def finish(run: Run, after: dict[str, float]) -> Path:
    """Write what a run that has succeeded leaves."""
    folder = run.folder / "lightning_logs" / "version_0"
    Results(
        before=scores(100.0), after=after, facts=2, seconds={"solve": 0.5}, peak_memory_gib=1.0, model="m",
        method={"name": run.method}, targets=None, layers={}, forgotten=["a"],
        attacks={"rank": {"base": 1.0, "edited": after["efficacy"] / 100, "gold": 0.125}},
        comparisons={"mean_gap": 0.25},
    ).write(folder)  # fmt: skip
    run.finish()
    return folder


def fail(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    run.finish("it broke")


def test_every_method_runs_on_every_draw_with_the_strength_that_was_chosen(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    tuning, runs = comparison.tuning_runs(), comparison.runs({(*PAIR, "MEMIT"): 0.3})
    assert [(run.method, run.seed, run.strength) for run in tuning] == [("MEMIT", 101, 0.1), ("MEMIT", 101, 0.3)]
    assert [(run.seed, run.method) for run in runs] == [(1, "MEMIT"), (1, "ROME"), (2, "MEMIT"), (2, "ROME")]
    assert "--method.retain_weight=0.3" in runs[0].arguments
    assert not any("retain_weight" in argument for argument in runs[1].arguments)
    assert {"--data.forget_num=2", "--data.seed=2", "--config=configs/demo.yaml"} <= set(runs[3].arguments)
    assert len({run.folder for run in (*tuning, *runs)}) == 6


def test_later_parts_options_of_a_model_and_options_of_all_runs_win(tmp_path: Path) -> None:
    method = {"options": {"model.layers": [1]}, "by_model": {"two": {"model.layers": [2]}}}
    changes = {"models": {"one": None, "two": None}, "methods": {"m": method}, "options": {"data.forget_num": 3}}
    comparison = read(tmp_path, **changes, seeds=[1])
    assert [[a for a in run.arguments if "layers" in a or "forget_num" in a] for run in comparison.runs({})] == [
        ["--data.forget_num=3", "--model.layers=[1]"],
        ["--data.forget_num=3", "--model.layers=[2]"],
    ]
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump({"like": str(tmp_path / "plan.yaml"), "seeds": [7]}))
    run = Comparison.read(path, tmp_path, {"data.forget_num": "5"}).runs({})[0]
    assert {"--data.forget_num=5", "--data.seed=7"} <= set(run.arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": []}, "config is .*: a comparison has models, data, methods, and seeds; this one does not know col"),
        ({"like": "no.yaml"}, "like is 'no.yaml': give the path of another comparison"),
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
def test_a_malformed_plan_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, **changes)


def test_a_file_that_cannot_be_read_or_holds_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it cannot be read"):
        Comparison.read(tmp_path / "none.yaml", tmp_path)
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(InputError, match="it holds no mapping"):
        Comparison.read(tmp_path / "list.yaml", tmp_path)


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_every_protocol_can_be_read(path: Path) -> None:
    assert Comparison.read(path, Path("out")).runs({})


def test_a_run_counts_as_finished_only_with_the_very_same_options_and_configurations(tmp_path: Path) -> None:
    config = tmp_path / "method.yaml"
    config.write_text("model: {layers: [0]}")
    methods = {"methods": {"m": str(config)}}
    run = read(tmp_path, **methods).runs({})[0]
    assert run.state == "waiting"
    fail(run)
    assert run.state == "it broke"
    finish(run, scores(5.0))
    assert read(tmp_path, **methods).runs({})[0].state == "finished"
    assert read(tmp_path, **methods, options={"data.retain_num": 7}).runs({})[0].state == "waiting"
    config.write_text("model: {layers: [1]}")
    assert run.state == "waiting"


def test_what_others_can_share_runs_first(tmp_path: Path) -> None:
    comparison = read(tmp_path, first="ROME", data={"a": None, "b": None})
    waves = [[(run.data, run.seed, run.method) for run in wave] for wave in comparison.waves(comparison.runs({}))]
    assert waves[0] == [("a", 1, "ROME")]
    assert waves[1] == [("a", 2, "ROME"), ("b", 1, "ROME"), ("b", 2, "ROME")]
    assert {method for _, _, method in waves[2]} == {"MEMIT"}
    comparison = read(tmp_path, first=["ROME", "MEMIT"], data={"a": None, "b": None})
    assert [run.method for run in comparison.waves(comparison.runs({}))[0]] == ["MEMIT", "ROME"]
    tuning = [[run.strength for run in wave] for wave in comparison.waves(comparison.tuning_runs())]
    assert tuning == [[0.1], [0.1], [0.3, 0.3]]


def test_the_tuning_score_is_a_harmonic_mean_of_what_is_gone_and_what_is_left() -> None:
    def of(after: dict[str, float]) -> float:
        row = {f"{name}_before": value for name, value in scores(100.0).items()} | after
        return float(tuning_score(pandas.DataFrame([row]), "exact_match")[0])

    assert of(scores(0.0)) == 1
    assert of(scores(50.0, kept=50.0)) == pytest.approx(5 / (1 / 0.5 * 4 + 1))
    assert of(scores(0.0, perplexity=8.0)) == pytest.approx(5 / (4 + 2))
    assert of(scores(0.0, kept=110.0, perplexity=3.0)) == 1
    assert of(scores(100.0)) == of(scores(0.0, kept=0.0)) == of(scores(0.0, perplexity=math.nan)) == 0
    before = {f"{name}_before": 0.0 for name in scores(0.0)} | {"efficacy_before": 100.0}
    assert tuning_score(pandas.DataFrame([before | scores(20.0)]), "exact_match")[0] == pytest.approx(0.8)


def test_the_strength_with_the_highest_tuning_score_is_chosen_and_its_trade_off_drawn(tmp_path: Path) -> None:
    comparison = read(tmp_path, tuning_seeds=[101, 102])
    runs = comparison.tuning_runs()
    for run in runs:
        finish(run, scores(10.0 if run.strength == 0.3 else 20.0, kept=90))
    found = tuning_scores(comparison, tidy(runs))
    assert found.index.tolist() == [(*PAIR, "MEMIT", 0.1), (*PAIR, "MEMIT", 0.3)]
    assert chosen_strengths(found) == {(*PAIR, "MEMIT"): 0.3}
    assert draw_trade_off(comparison, tidy(runs), *PAIR).read_bytes().startswith(b"\x89PNG")
    (picture,) = pictures_in(comparison.folder)
    assert picture.name == "trade-off-demo-2-facts"
    assert ">MEMIT<" in picture.svg
    fail(next(run for run in runs if run.strength == 0.3))
    assert chosen_strengths(tuning_scores(comparison, tidy(runs))) == {(*PAIR, "MEMIT"): 0.1}


@pytest.fixture
def done(tmp_path: Path) -> tuple[Comparison, list[Run]]:
    """MEMIT forgets and keeps less than ROME, which does not forget; one run has failed."""
    comparison = read(tmp_path)
    runs = comparison.runs({})
    finish(runs[0], scores(10.0, 90.0))
    finish(runs[1], scores(90.0, 99.0))
    finish(runs[2], scores(20.0, 80.0, perplexity=6.0))
    fail(runs[3])
    return comparison, runs


def test_a_table_has_means_and_deviations_and_the_best_of_those_that_forget(done: tuple[Comparison, list[Run]]) -> None:
    comparison, runs = done
    lines = table(comparison, tidy(runs), *PAIR)
    assert lines[0] == ["Method", "Eff.", "Gen.", "Spe.", "Ret.", "PPL"]
    assert lines[1][:2] == ["Base", "100.00 ± 0.00"]
    assert lines[2] == ["MEMIT", *["**15.00 ± 7.07**"] * 2, *["**85.00 ± 7.07**"] * 2, "**5.00 ± 1.41**"]
    assert lines[3] == ["ROME (1 of 2 runs)", "90.00", "90.00", "99.00", "99.00", "4.00"]
    assert markdown(lines[2:3]).startswith("| MEMIT | **15.00 ± 7.07** |")
    assert r"MEMIT & \textbf{15.00 $\pm$ 7.07} &" in latex(lines)
    fail(runs[1])
    assert table(comparison, tidy(runs), *PAIR)[3] == ["ROME (0 of 2 runs)", *["failed"] * 5]
    comparison.headline["2 facts"] = "token_accuracy"
    assert rows_of(comparison, tidy(runs), *PAIR)["MEMIT"]["efficacy"] == Cell(50.0, 0.0)


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_method_that_destroys_the_model_is_not_the_best(perplexity: float, tmp_path: Path) -> None:
    comparison = read(tmp_path)
    runs = comparison.runs({})
    for run in runs:
        destroys = run.method == "ROME"
        finish(run, scores(0.0 if destroys else 40.0, perplexity=perplexity if destroys and run.seed == 1 else 5.0))
    assert {method for method, _ in best(rows_of(comparison, tidy(runs), *PAIR))} == {"MEMIT"}
    line = table(comparison, tidy(runs), *PAIR)[3]
    assert line == ["ROME", *["0.00 ± 0.00"] * 2, *["100.00 ± 0.00"] * 2, "> 1000"]
    assert "$>$ 1000" in latex([line])
    assert Cell(1000.0).text("perplexity") == "1000.00"


def test_the_best_leak_is_the_one_nearest_to_zero(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    runs = comparison.runs({})
    for run in runs:
        finish(run, scores(0.0) | {"leak_nats": -3.0 if run.method == "ROME" else 0.5})
    found = best(rows_of(comparison, tidy(runs), *PAIR))
    assert [method for method, score in found if score == "leak_nats"] == ["MEMIT"]
    assert table(comparison, tidy(runs), *PAIR)[0][-2:] == ["Leak", "PPL"]


def test_attacks_have_a_table_with_base_and_gold(done: tuple[Comparison, list[Run]]) -> None:
    comparison, runs = done
    assert attack_table(comparison, tidy(runs), *PAIR) == [
        ["Method", "Rank", "Mean gap"],
        ["Base", "100.00 ± 0.00", ""],
        ["Gold", "12.50 ± 0.00", ""],
        ["MEMIT", "15.00 ± 7.07", "25.00 ± 0.00"],
        ["ROME (1 of 2 runs)", "90.00", "25.00"],
    ]
    assert attack_table(comparison, tidy(runs[3:]), *PAIR) == []


def test_every_run_is_a_row_also_a_failed_one(done: tuple[Comparison, list[Run]], tmp_path: Path) -> None:
    write_tidy(tidy(done[1]), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "finished", "finished", "it broke"]
    names = ("efficacy_before", "efficacy", "seconds_solve", "mean_gap")
    assert [rows[0][name] for name in names] == ["100.0", "10.0", "0.5", "0.25"]
    assert [rows[0][f"attack_rank{suffix}"] for suffix in ("_before", "", "_gold")] == ["1.0", "0.1", "0.125"]
    assert rows[3]["efficacy"] == ""
    assert pyarrow.parquet.read_table(tmp_path / "runs.parquet").column("efficacy").to_pylist()[:3] == [10, 90, 20]


def test_published_figures_stand_beside_ours_where_the_model_is_the_papers(tmp_path: Path) -> None:
    comparison = read(tmp_path, models={"Qwen-3": "configs/demo.yaml"}, data={"zsRE": None}, protocol="few")
    assert published_rows(comparison, "Qwen-3", "zsRE")["AlphaEdit"]["efficacy"] == Cell(28.52, 3.30)
    assert published_rows(comparison, "demo", "zsRE") == {}
    run = comparison.runs({})[0]
    finish(run, scores(3.0))
    names = [line[0] for line in table(comparison, tidy([run]), "Qwen-3", "zsRE")]
    assert names == ["Method", "Base", "Base (published)", "MEMIT", "ROME"]


def test_general_ability_is_drawn_for_all_methods_if_it_was_measured(tmp_path: Path) -> None:
    runs = read(tmp_path).runs({})
    assert draw_downstream(runs, *PAIR, tmp_path) is None
    for i, run in enumerate(runs):
        result = TaskResult("RTE", "accuracy", 200, 55.0, TaskScore(80.0, 3.0), TaskScore(70.0 + 2 * i, 3.0))
        write_downstream({"rte": result}, finish(run, scores(0.0)))
    tasks, models = abilities(runs, *PAIR)
    assert list(tasks) == ["rte"]
    expected = {"before": 80, "MEMIT": 72, "ROME": 74}
    assert models == {name: {"rte": TaskScore(value, 3)} for name, value in expected.items()}
    assert draw_downstream(runs, *PAIR, tmp_path)
    (picture,) = pictures_in(tmp_path)
    assert (picture.name, picture.title) == ("downstream-demo-2-facts", "General ability: demo, 2 facts")


def test_methods_that_wrote_representations_are_drawn_side_by_side(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    runs = comparison.runs({})
    assert draw_representations(comparison, runs, *PAIR) == []
    plane = Plane((0.5, 0.25), ((0.0, 0.0),), ((1.0, 1.0),))
    layer = LayerRepresentations(0, plane, plane, {"forget": Shift(1, *[None] * 3)})
    for run in runs:
        folder = finish(run, scores(10.0))
        if run.seed == 2 or run.method == "ROME":
            RepresentationMap(("a",), ("forget",), (layer,)).write(folder)
    names = [path.name for path in draw_representations(comparison, runs, *PAIR)]
    assert names == [f"representations-demo-2-facts-seed-{seed}-layer-0.png" for seed in (1, 2)]
    drawn = [[name in picture.description for name in ("MEMIT", "ROME")] for picture in pictures_in(comparison.folder)]
    assert drawn == [[False, True], [True, True]]


def test_what_is_finished_is_not_run_again_and_what_failed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    executed: list[Run] = []

    def pretend(run: Run, entry: object, slot: object) -> str:
        executed.append(run)
        if run.method == "ROME" and len(executed) < 7:
            fail(run)
            return "it broke"
        finish(run, scores(10.0))
        return ""

    monkeypatch.setattr(execution, "execute", pretend)
    read(tmp_path)
    out = tmp_path / "out"
    arguments = ["--config", str(tmp_path / "plan.yaml"), "--folder", str(out)]
    arguments += ["--options", "[data.retain_num=7, data.protect_num=8]", "model.dtype=float32"]
    with pytest.raises(SystemExit, match="The same command tries them again"):
        command.main(arguments, train.main)
    assert len(executed) == 6
    assert {"--data.retain_num=7", "--data.protect_num=8", "--model.dtype=float32"} <= set(executed[0].arguments)
    command.main(arguments, train.main)
    assert [run.method for run in executed[6:]] == ["ROME", "ROME"]
    assert "| ROME |" in (out / "tables.md").read_text()
    assert "**0.1: " in (out / "strengths.md").read_text()
    assert "| Gold |" in (out / "attacks.md").read_text()
    command.main([*arguments, "--dry-run"], train.main)
    assert len(executed) == 8
    assert "4 of 4 runs are finished" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--options", "seed"], "train.py: error: argument --options: 'seed' has no value: write NAME=VALUE"),
        (["--jobs", "0"], "train.py: error: --jobs is 0: give a positive number."),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["compare", "--config=configs/protocols/few_shot_demo.yaml", *words])
    assert ended.value.code
    assert message in f"{capfd.readouterr().err}{ended.value.code}"


def test_a_run_is_an_ordinary_fit_in_a_process_of_its_own(tmp_path: Path) -> None:
    good, bad = read(tmp_path, options=SHORT, seeds=[1]).runs({})
    bad = Run(**vars(bad) | {"arguments": (*bad.arguments, "--data.forget_num=-1")})
    ended: dict[str, str] = {}
    run_here([good, bad], train.main, slots(1), lambda run, error: ended.update({run.method: error}))
    assert ended["MEMIT"] == ""
    assert good.measured is not None
    assert Results.read(good.measured).method["name"] == "Memit"
    assert "--data.forget_num is -1" in ended["ROME"]
    assert bad.state == ended["ROME"]


@pytest.mark.slow
def test_a_comparison_that_was_killed_redoes_no_finished_run(tmp_path: Path) -> None:
    methods = {name: f"configs/methods/{name.lower()}.yaml" for name in ("MEMIT", "ROME")}
    runs = read(tmp_path, options=SHORT, methods=methods, tuning_seeds=[]).runs({})
    words = [sys.executable, "train.py", "compare", "--config", str(tmp_path / "plan.yaml")]
    words += ["--folder", str(tmp_path / "out")]
    comparison = subprocess.Popen(words, cwd=ROOT)
    while runs[1].measured is None:
        assert comparison.poll() is None
        time.sleep(0.1)
    comparison.kill()
    comparison.wait()
    finished = {run.folder: (run.folder / "ended.txt").stat().st_mtime_ns for run in runs if run.measured}
    assert 2 <= len(finished) < len(runs)
    subprocess.run(words, cwd=ROOT, check=True)
    assert all(run.measured for run in runs)
    assert all((folder / "ended.txt").stat().st_mtime_ns == when for folder, when in finished.items())
    assert "| ROME |" in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.slow
def test_runs_are_submitted_to_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert runs[1].state == ended["ROME"]


def test_options_that_the_cluster_does_not_take_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=r"cluster-options is .*: submitit does not take them"):
        run_on_cluster([], train.main, tmp_path, {"cluster": "local", "timeout_min": "soon"}, lambda run, error: None)


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
