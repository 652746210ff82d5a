"""Gradient methods: what they train, what they export, and how they continue after they were killed."""

import html
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from callbacks import ExportEditedModel, Report, Resume
from callbacks.export import tell_how_to_serve
from data import UnlearnDataModule
from tests.conftest import DEMO
from zu_lightning import (
    NPO,
    RMU,
    ExportCheck,
    FineTuning,
    GradientAscent,
    GradientDifference,
    GradientMethod,
    GradientModule,
    InputError,
    LoraOptions,
    ReadingOptions,
    Results,
    SimNPO,
    TrainingOptions,
)
from zu_lightning.gradient.method import Answers
from zu_lightning.lm.adapter import VLLM_RANKS
from zu_lightning.modules.outputs import checkpoint_path

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # trained without dropout, as it is used

WEIGHT = "model.layers.0.mlp.down_proj.weight"
TRAINING = TrainingOptions(epochs=3, batch_size=2, learning_rate=0.05, warmup_epochs=0)
LOSSES = [
    (GradientAscent(), 0.05),
    (GradientDifference(), 0.05),
    (GradientDifference(divergence=True), 0.05),
    (NPO(), 0.05),
    (SimNPO(), 0.05),
    (RMU(), 1.0),
]
"""Each loss with a learning rate at which a few steps suffice."""


class Killed(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


def fit(
    root: Path,
    loss: GradientMethod,
    *callbacks: Callback,
    resume: bool = False,
    protect: int = 0,
    dtype: str = "auto",
    **options: Any,
) -> Any:
    """A few epochs on three facts of the demo."""
    changes: dict[str, Any] = {"training": TRAINING, "protect_num": protect} | options
    method = replace(loss, **changes)
    module = GradientModule(method, model_name_or_path=str(DEMO / "model"), dtype=dtype)
    data = UnlearnDataModule(
        str(DEMO / "facts.jsonl"), str(DEMO / "corpus.txt"), str(DEMO / "heldout.txt"), forget_num=3, retain_num=5,
        reading=ReadingOptions(corpus_documents=20, heldout_documents=5),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, default_root_dir=root, num_sanity_val_steps=-1, logger=False,
        reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[*callbacks, Report(), Resume()],
    )  # fmt: skip
    data.connect(module)
    trainer.fit(module, data, ckpt_path=str(checkpoint_path(str(root))) if resume else None)
    return module


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(DEMO / "model").state_dict())


def changed(module: GradientModule, base: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that differ from the demo model's."""
    trained = module.lm.model.state_dict()
    return {name for name in base if not torch.equal(base[name], trained[name])}


@pytest.mark.parametrize(("loss", "rate"), LOSSES, ids=str)
def test_a_loss_makes_the_model_forget(
    loss: GradientMethod, rate: float, tmp_path: Path, base: dict[str, torch.Tensor]
) -> None:
    module = fit(tmp_path, loss, training=replace(TRAINING, learning_rate=rate))
    assert module.trainer.global_step == 3 * 2
    results = Results.read(tmp_path)
    assert results.method["name"] == type(loss).__name__
    assert results.before["efficacy"] == 100
    assert results.after["efficacy_probability"] < 0.9 * results.before["efficacy_probability"]
    assert changed(module, base) == {WEIGHT}


def test_fine_tuning_teaches_the_neutral_answer(tmp_path: Path) -> None:
    module = fit(tmp_path, FineTuning(), training=replace(TRAINING, epochs=10))
    assert all(module.complete(fact).strip().startswith("unknown") for fact in module.request.forget)


def test_all_weights_can_be_trained(tmp_path: Path, base: dict[str, torch.Tensor]) -> None:
    module = fit(tmp_path, NPO(), ExportEditedModel(), weights="all")
    assert changed(module, base) == base.keys()
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("all_linear", [False, True])
def test_an_adapter_is_trained_and_exported_as_it_is(
    all_linear: bool, tmp_path: Path, base: dict[str, torch.Tensor]
) -> None:
    # The export loads base and adapter, and compares them with the trained model.
    options: dict[str, Any] = {
        "lora": LoraOptions(rank=2, all_linear=all_linear),
        "training": replace(TRAINING, learning_rate=0.3),
    }
    module = fit(tmp_path, NPO(), ExportEditedModel(), weights="lora", **options)
    assert module.run.after["efficacy_probability"] < module.run.before["efficacy_probability"]
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {min(weight.shape) for weight in weights.values()} == {2}
    projections = {name for name in base if "_proj." in name}
    assert changed(module, base) == (projections if all_linear else {WEIGHT})
    assert len(weights) == 2 * (len(projections) if all_linear else 1)


class LowRank(Callback):
    """Training that ends with a change of low rank."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        self.weight, self.change = weight, 0.01 * torch.ones_like(weight)
        self.change[:, : rank - 1] = torch.randn(len(weight), rank - 1, generator=torch.Generator().manual_seed(0))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.lm.weight(0).data.copy_(self.weight + self.change)  # type: ignore[operator,union-attr]


def test_a_change_of_low_rank_leaves_as_an_adapter(
    tmp_path: Path, base: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fit(tmp_path, FineTuning(), LowRank(base[WEIGHT], 1), ExportEditedModel(max_adapter_rank=4))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {min(weight.shape) for weight in weights.values()} == {1}
    command = (
        f"vllm serve {DEMO / 'model'} --enable-lora --lora-modules edited={tmp_path / 'adapter'} --max-lora-rank 8"
    )
    assert command in caplog.text
    assert command in html.unescape((tmp_path / "report.html").read_text()).replace("=adapter", f"={tmp_path}/adapter")
    assert "was cut" not in caplog.text


def test_an_adapter_is_cut_if_asked_and_says_what_that_does(
    tmp_path: Path, base: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, FineTuning(), LowRank(base[WEIGHT], 3), ExportEditedModel(max_adapter_rank=2))
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {min(weight.shape) for weight in weights.values()} == {2}
    (line,) = (line for line in caplog.messages if "the adapter was cut from rank 3 to 2" in line)
    with_adapter, edit = (float(number) for number in re.findall(r"\d\.\de[+-]\d\d", line))
    assert 1e-2 < with_adapter < edit


def test_an_adapter_of_the_highest_rank_that_is_asked_for_is_not_cut(
    tmp_path: Path, base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ExportCheck(model=0.0, adapter=1.0, edit=2.0, rounded=0.0)
    monkeypatch.setattr("callbacks.export.check_export", lambda *_: wrong)
    with pytest.raises(RuntimeError, match="what was exported is not the edited model"):
        fit(tmp_path, FineTuning(), LowRank(base[WEIGHT], 3), ExportEditedModel(max_adapter_rank=3))


@pytest.mark.parametrize(("steps", "is_refused"), [(1, False), (2, True)])
def test_what_rounding_a_logit_can_do_is_no_reason_to_refuse_an_adapter(
    steps: int, is_refused: bool, tmp_path: Path, base: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.finfo(torch.bfloat16).eps
    found = ExportCheck(model=0.0, adapter=steps * step, edit=step, rounded=0.0, spacing=step)
    monkeypatch.setattr("callbacks.export.check_export", lambda *_: found)
    with pytest.raises(RuntimeError, match="is not the edited model") if is_refused else nullcontext():
        fit(tmp_path, FineTuning(), LowRank(base[WEIGHT], 1), ExportEditedModel(), dtype="bfloat16")


def test_a_rank_above_all_that_servers_take_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tell_how_to_serve("base", tmp_path, VLLM_RANKS[-1] + 1)
    (line,) = caplog.messages
    assert "the adapter has rank 513, and vLLM takes none above 512: serve model/, or let max_adapter_rank" in line


@pytest.mark.parametrize("weights", ["projections", "lora"])
def test_the_reference_is_the_model_before_training(weights: str, tmp_path: Path) -> None:
    class Compared(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            lm: Any = pl_module.lm
            base = AutoModelForCausalLM.from_pretrained(DEMO / "model")
            ids = torch.arange(20)[None]
            trained = lm.model(input_ids=ids).logits
            with pl_module.trained.reference(), torch.no_grad():  # type: ignore[operator,union-attr]
                reference = lm.model(input_ids=ids).logits
            assert torch.allclose(reference, base(input_ids=ids).logits, atol=1e-6)
            assert not torch.allclose(trained, reference, atol=1e-2)
            assert torch.equal(lm.model(input_ids=ids).logits, trained)
            self.was_called = True

    compared = Compared()
    fit(tmp_path, NPO(), compared, weights=weights)
    assert compared.was_called


@pytest.mark.parametrize("weights", ["projections", "lora"])
def test_a_killed_run_continues_to_the_same_weights(weights: str, tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole", NPO(), weights=weights)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path / "killed", NPO(), Killed(), weights=weights)
    checkpoint = torch.load(checkpoint_path(str(tmp_path / "killed")))
    assert 0 < len(checkpoint["state_dict"]) <= 2
    resumed = fit(tmp_path / "killed", NPO(), resume=True, weights=weights)
    assert torch.equal(resumed.lm.weight(0), expected.lm.weight(0))
    assert resumed.run.before == expected.run.before
    assert resumed.run.after == expected.run.after


def test_what_is_kept_are_the_protected_facts_or_else_the_retain_text(tmp_path: Path) -> None:
    module = fit(tmp_path, NPO(), protect=4)
    assert len(module.keep) == 4
    assert module.run.after.keys() >= {"protected", "retain"}
    assert all(text.answer > 1 for text in module.keep)  # facts have prompts, which documents have not
    text = fit(tmp_path, NPO())
    assert len(text.keep) == len(text.request.text.documents)


def test_the_schedule_rises_and_falls() -> None:
    options = TrainingOptions(epochs=10, warmup_epochs=2)
    assert [options.factor(epoch) for epoch in (0, 1, 2, 6, 10)] == [0, 0.5, 1, 0.5, 0]
    assert replace(options, decay=False, warmup_epochs=0).factor(9) == 1


POSITIVE = ("epochs", "batch_size", "learning_rate", "retain_length")
UNUSABLE = [
    *((TrainingOptions, name, value) for name in POSITIVE for value in (0, -1, math.nan)),
    *((TrainingOptions, name, value) for name in ("warmup_epochs", "weight_decay") for value in (-1, math.inf)),
    *((LoraOptions, name, 0) for name in ("rank", "alpha")),
    *((LoraOptions, "dropout", value) for value in (-0.1, 1.0, math.nan)),
]


@pytest.mark.parametrize(("options", "name", "value"), UNUSABLE)
def test_numbers_that_nothing_can_be_trained_with_are_refused(options: Any, name: str, value: float) -> None:
    section = "training" if options is TrainingOptions else "lora"
    with pytest.raises(InputError, match=rf"{section}\.{name} is {value}: give"):
        options(**{name: value})


@pytest.mark.parametrize(("loss", "_"), [*LOSSES, (FineTuning(), 0.0)], ids=str)
def test_a_loss_says_whether_it_asks_for_the_reference(loss: GradientMethod, _: float) -> None:
    """Exactly those that ask keep a copy of all weights."""

    class Prompt:
        reference = False

        def answers(self, part: str, *, reference: bool = False) -> Answers:
            self.reference |= reference
            return Answers(torch.ones(2), torch.ones(2), torch.zeros(2, 3))

        def states(self, part: str, *, reference: bool = False) -> torch.Tensor:
            self.reference |= reference
            return torch.ones(2, 3)

    asked = Prompt()
    loss(asked)
    assert asked.reference == loss.uses_reference
