"""Attacks as a part of a run: what is attacked, what is reported, and what is kept."""

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import DEMO, SHORT_RUN, run
from zu_lightning import EditableLM, Fact, InputError, ReadingOptions, Request, Results, RetainText, split_facts
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.measurement import unfit
from zu_lightning.report.terminal import results_table

ATTACKED = ("--attacks.preset=quick", f"--attacks.gold={DEMO}/gold", *SHORT_RUN)
QUICK = ("rank", "leak", "prompting", "memorization", "extraction", "truth_ratio", "membership", "lens", "probe")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with the quick suite, beside the gold that ships."""
    return run(tmp_path_factory.mktemp("attacked"), *ATTACKED)


def test_every_attack_is_reported_for_three_models(attacked: Path) -> None:
    results = Results.read(attacked)
    assert {name.partition("_")[0] for name in results.attacks} == {name.partition("_")[0] for name in QUICK}
    for scores in results.attacks.values():
        assert [name for name in scores if name != "chance"] == ["base", "edited", "gold", "gap", "low", "high"]
        assert scores["gap"] == pytest.approx(scores["edited"] - scores["gold"], abs=1e-9)
        assert scores["low"] <= scores["gap"] <= scores["high"]
    assert results.attacks["rank_first"]["base"] == 1
    assert results.attacks["rank_first"]["gold"] == 0
    assert 0 < results.attacks["rank_first"]["chance"] < results.attacks["rank"]["chance"] == 0.5
    assert [name for name, of in results.attacks.items() if "chance" in of] == [
        "rank", "rank_first", "rank_first_paraphrases", "rank_paraphrases",
    ]  # fmt: skip
    assert results.comparisons.keys() == {
        "kept",
        "mean_gap", "mean_gap_low", "mean_gap_high", "forget_quality", "privleak",
    }  # fmt: skip
    assert results.verdict is not None
    assert "9 attacks" in results.verdict
    assert "rank_first_paraphrases" in results_table(results)
    assert results.seconds["attacks"] > 0


def test_tensorboard_shows_the_attacks(attacked: Path) -> None:
    results, events = Results.read(attacked), EventAccumulator(str(attacked)).Reload()
    for name, scores in results.attacks.items():
        shown = [event.value for event in events.Scalars(f"attacks/{name}")]
        assert shown == pytest.approx([scores["base"], scores["edited"], scores["gold"]])


def test_what_was_attacked_is_not_attacked_again(attacked: Path) -> None:
    root = attacked.parent.parent
    with patch("zu_lightning.attacks.presets.attack_together", side_effect=AssertionError("attacked again")):
        again = run(root, *ATTACKED)
    assert Results.read(again).attacks == Results.read(attacked).attacks


def test_without_gold_there_is_no_verdict_but_a_hint(tmp_path: Path) -> None:
    options = ("--attacks.preset=quick", "--attacks.gold=null", "--attacks.facts=1")
    results = Results.read(run(tmp_path, *options, *SHORT_RUN))
    assert set(results.attacks["rank"]) == {"base", "edited", "chance"}
    assert "attacks.gold" in str(results.verdict)
    assert "on 1 fact:" in str(results.verdict)


def test_without_a_preset_nothing_is_attacked(two_layers_run: Path) -> None:
    results = Results.read(two_layers_run)
    assert not results.attacks
    assert results.verdict is None
    assert "attack" not in results_table(results)
    assert json.loads((two_layers_run / "metrics.json").read_text())["attacks"] == {}


def test_a_gold_that_knows_the_facts_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gold = f"--attacks.gold={DEMO}/model"
    results = Results.read(run(tmp_path, "--attacks.preset=quick", gold, "--attacks.facts=1", *SHORT_RUN))
    assert set(results.attacks["rank"]) == {"base", "edited", "chance"}
    assert "knows 100% of the facts to forget: it is left out" in caplog.text


def test_gold_must_know_hardly_any_fact_and_be_tokenized_alike(
    demo_facts: list[Fact], demo_lm: EditableLM, lm: EditableLM
) -> None:
    gold = EditableLM.from_pretrained(DEMO / "gold")

    def unfit_for(number: int, model: EditableLM) -> str:
        forget = split_facts(demo_facts, number)[0]
        return unfit(
            gold, model, AttackContext.of(Request(forget, RetainText([], ReadingOptions()), known=demo_facts), 100)
        )

    assert not unfit_for(10, demo_lm)
    # It was taught all facts but the first ten of the draw.
    assert unfit_for(13, demo_lm) == "knows 23% of the facts to forget"
    assert "another tokenizer" in unfit_for(10, lm)


def test_a_gold_that_is_not_there_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises((InputError, SystemExit)):
        run(tmp_path, "--attacks.preset=quick", "--attacks.gold=nowhere", *SHORT_RUN)
    assert not (tmp_path / "cache").exists()


def test_a_target_of_unknown_subjects_leaves_less_of_the_truth_than_a_word(tmp_path: Path) -> None:
    few = ("--data.forget_num=3", "--data.retain_num=3", "--data.reading.corpus_documents=600")
    options = (*few, "--data.reading.heldout_documents=3", "--attacks.preset=quick", "--attacks.gold=null")
    word, reference = (
        Results.read(run(tmp_path, *options, *more, configs=configs))
        for more, configs in (
            ((), ("demo", "methods/memit")),
            (("--data.protect_num=20", "--data.protect_same_subject=false"), ("demo", "methods/erase")),
        )
    )
    assert reference.attacks["rank"]["edited"] < word.attacks["rank"]["edited"]
    assert reference.after["efficacy"] == 0
    assert not math.isnan(reference.after["same_subject"])
