"""What a run will compute, counted before it does, is what its passes then compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.conftest import DEMO, SHORT_RUN, run
from zu_lightning import (
    NPO,
    EditableLM,
    Erase,
    Fact,
    Memit,
    ReadingOptions,
    Request,
    Results,
    evaluate,
    read_texts,
)  # fmt: skip
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.presets import attacks_of, attacks_work, run_attacks
from zu_lightning.editing.method import EditingMethod, LatentOptions
from zu_lightning.editing.preparation import layer_problem, prepare
from zu_lightning.gradient.method import LoraOptions, TrainingOptions
from zu_lightning.lm import architecture
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.work import Speed, Work, measure_speed
from zu_lightning.report.estimate import editing_works, evaluation_work, told, training_work
from zu_lightning.report.measurements import request_batches
from zu_lightning.runtime.timing import Monitor
from zu_lightning.tracing import indirect_effects
from zu_lightning.tracing.indirect_effects import TraceOptions, trace_effects, tracing_work
from zu_lightning.tracing.traced_prompts import traced_text

LAYERS = (0, 1)


def request_for(facts: list[Fact], method: EditingMethod, cache: Path | None = None) -> Request:
    """Three facts to forget, 40 documents, and a few to keep."""
    corpus, heldout = (read_texts(str(DEMO / name), 400) for name in ("corpus.txt", "heldout.txt"))
    return Request.draw(
        facts, corpus, method=method, forget=3, retain=5, protect=20, heldout=heldout[:4],
        reading=ReadingOptions(batch_tokens=512), cache=cache,
    )  # fmt: skip


@contextmanager
def counted(lm: EditableLM) -> Iterator[list[float]]:
    """Tokens that attention has seen, padding included, as if through all layers; twice more with gradients."""
    found = [0.0]

    def count(_: object, __: object, output: tuple[torch.Tensor]) -> None:
        rows, length = output[0].shape[:2]
        found[0] += rows * length * (3 if output[0].requires_grad else 1) / len(lm.layers)

    handles = [architecture.attention(layer, lm.model).register_forward_hook(count) for layer in lm.layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def test_a_reader_is_told_of_what_takes_long() -> None:
    seconds = {"evaluation": 24.2, "attacks": 0.0, "moments": 100.0, "targets": 12.0, "apply": 0.2, "export": 10.0}
    assert told(seconds, {"evaluation": 2, "attacks": 0}) == (
        "this run will take about 2 min 30 s on this machine: evaluation 2 x 12 s, retain text 1 min 40 s, targets "
        "12 s, export 10 s"
    )


def test_a_speed_is_positive(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    (batch, *_) = request_batches(demo_lm, request_for(demo_facts, Erase()))
    assert min(vars(measure_speed(demo_lm, batch.texts)).values()) > 0


def test_an_evaluation_is_counted_to_the_token(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    evaluation = request_batches(demo_lm, request_for(demo_facts, Erase()))
    with counted(demo_lm) as found:
        evaluate(demo_lm, evaluation)
    assert evaluation_work(evaluation).tokens == pytest.approx(found[0])


def test_attacks_are_counted(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    context = AttackContext.of(request_for(demo_facts, Erase()), 100)
    every = attacks_of("quick", len(demo_lm.layers))
    for attacks, tolerance in (([one for one in every if one.name not in ("probe", "lens")], 0.01), (every, 0.3)):
        with counted(demo_lm) as found:
            run_attacks(demo_lm, context, attacks)
        assert attacks_work(demo_lm, context, attacks).tokens == pytest.approx(found[0], rel=tolerance)


@pytest.mark.parametrize("method", [Erase(), Memit(latents=LatentOptions(tolerance=0))], ids=["Erase", "Memit"])
def test_phases_of_an_edit_are_counted(
    method: EditingMethod, demo_lm: EditableLM, demo_facts: list[Fact], tmp_path: Path
) -> None:
    request = request_for(demo_facts, method, tmp_path)
    works = editing_works(demo_lm, request, method, LAYERS, open_cache(tmp_path, demo_lm), "unknown")
    counts: dict[str, float] = {}

    class Counting(Monitor):
        @contextmanager
        def timed(self, phase: str) -> Iterator[None]:
            with counted(demo_lm) as found:
                yield
            counts[phase] = counts.get(phase, 0.0) + found[0]

    preparation = prepare(demo_lm, request, LAYERS, method, monitor=Counting())
    for layer in LAYERS:
        layer_problem(demo_lm, request, layer, preparation, Counting())
    assert counts.keys() == works.keys() - {"solve"}
    for phase, count in counts.items():
        assert works[phase].tokens == pytest.approx(count, rel=0.3), phase
    again = editing_works(demo_lm, request, method, LAYERS, open_cache(tmp_path, demo_lm), "unknown")
    assert again["moments"] == Work()
    other = editing_works(demo_lm, replace(request, text=replace(request.text, documents=request.text.documents[:-2])),
                          method, LAYERS, open_cache(tmp_path, demo_lm), "unknown")  # fmt: skip
    assert 0 < other["moments"].tokens < 0.2 * works["moments"].tokens


def test_tracing_is_counted(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    facts = demo_facts[:4]
    options = TraceOptions(samples=2, window=2, only_known=False)
    texts = [traced_text(demo_lm.tokenizer, fact) for fact in facts]
    with counted(demo_lm) as found, patch.object(indirect_effects, "measure_speed", return_value=Speed(1, 1, 1, 1)):
        trace_effects(demo_lm, facts, options)
    assert tracing_work(len(demo_lm.layers), texts, options).tokens == pytest.approx(found[0], rel=0.3)


def test_every_epoch_of_a_gradient_method_is_counted(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    request = request_for(demo_facts, Erase())
    few, many = (NPO(training=TrainingOptions(epochs=epochs)) for epochs in (2, 6))
    whole = replace(many, weights="lora", lora=LoraOptions(all_linear=True))
    tokens = [training_work(demo_lm, request, method, [1], "unknown").tokens for method in (few, many, whole)]
    assert 3 * tokens[0] == tokens[1] < tokens[2]


def test_a_run_says_what_it_expects_of_its_phases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = Results.read(run(tmp_path, *SHORT_RUN))
    (line,) = [record.message for record in caplog.records if record.message.startswith("this run will take about")]
    assert "evaluation 2 x " in line
    assert first.estimated_seconds.keys() == first.seconds.keys() - {"load", "apply"}
    assert min(first.estimated_seconds.values()) > 0
    again = Results.read(run(tmp_path, *SHORT_RUN))
    assert again.estimated_seconds["moments"] == 0
    assert again.estimated_seconds.keys() == first.estimated_seconds.keys()


def test_gradient_methods_say_it_too(tmp_path: Path) -> None:
    short = [option for option in SHORT_RUN if "latents" not in option]
    results = Results.read(run(tmp_path, "--method=NPO", "--method.training.epochs=1", *short))
    assert results.estimated_seconds.keys() == results.seconds.keys() - {"load"}


@pytest.mark.slow
def test_an_estimate_is_about_what_a_run_takes(tmp_path: Path) -> None:
    results = Results.read(run(tmp_path))
    whole = sum(results.seconds[phase] for phase in results.estimated_seconds)
    assert 1 / 3 < sum(results.estimated_seconds.values()) / whole < 3
