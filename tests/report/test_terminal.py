"""The table at the end of a run."""

from dataclasses import replace

from tests.report.test_results import RESULTS
from zu_lightning.report.terminal import results_table

INTERVALS = {"after": {"efficacy": (0.0, 70.8), "retain": (95.0, 100.0)}}


def rows(text: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}


def test_the_table_shows_the_headlines_before_and_after_with_their_intervals() -> None:
    found = rows(results_table(replace(RESULTS, intervals=INTERVALS)))
    assert found["efficacy"] == ["100.0", "0.000", "0.0", "to", "70.8"]
    assert found["retain"] == ["99.5", "98.0", "95.0", "to", "100.0"]
    assert found["perplexity"] == ["4.12", "4.25"]


def test_the_table_has_a_gap_where_nothing_was_measured() -> None:
    """Without Lightning's sanity check there are no scores before."""
    assert rows(results_table(replace(RESULTS, before={})))["retain"] == ["-", "98.0"]


def test_the_table_shows_probabilities_beside_what_greedy_decoding_gives() -> None:
    after = RESULTS.after | {"efficacy_probability": 0.002, "retain_probability": 0.25}
    found = results_table(replace(RESULTS, before=RESULTS.before | {"efficacy_probability": 0.31}, after=after))
    assert rows(found)["efficacy"] == ["100.0", "0.000", "0.310", "0.002"]
    assert rows(found)["retain"] == ["99.5", "98.0", "-", "0.250"]
    assert rows(found)["perplexity"] == ["4.12", "4.25"]
    assert "p: mean probability of the answers" in found


def test_the_table_leaves_out_details() -> None:
    details = replace(RESULTS, after=RESULTS.after | {"efficacy_token_accuracy": 12.0})
    assert results_table(details) == results_table(RESULTS)


def test_the_table_shows_attacks_in_percent_and_the_verdict() -> None:
    attacks = {
        "leak": {"base": 0.9, "edited": 0.25, "gold": 0.05, "gap": 0.2, "low": 0.1, "high": 0.3},
        "lens": {"edited": 1.0},
        "lens_layer_2": {"edited": 0.5},
    }
    found = results_table(replace(RESULTS, attacks=attacks, verdict="Masked, not erased."))
    assert rows(found)["leak"] == ["90.0", "25.0", "5.0", "20.0", "10.0", "to", "30.0"]
    assert rows(found)["lens"] == ["-", "100.0", "-", "-"]
    assert "lens_layer_2" not in found  # the report has it
    assert "gold: a model that was never trained" in found
    assert found.splitlines()[-1] == "Masked, not erased."


def test_the_table_shows_what_is_recovered_by_chance_where_it_is_known() -> None:
    attacks = {"rank_first": {"base": 0.9, "edited": 0.25, "chance": 0.0725}, "leak": {"base": 0.9, "edited": 0.25}}
    found = results_table(replace(RESULTS, attacks=attacks))
    assert rows(found)["attack"] == ["(percent)", "before", "after", "chance"]
    assert rows(found)["rank_first"] == ["90.0", "25.0", "7.2"]
    assert rows(found)["leak"] == ["90.0", "25.0"]


def test_only_a_terminal_that_can_gets_colors() -> None:
    assert "\x1b[" in results_table(RESULTS, color=True)
    assert "\x1b[" not in results_table(RESULTS)
