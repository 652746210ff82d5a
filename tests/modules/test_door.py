"""The door for gradient methods: one is defined here, outside the package, and takes the whole road."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from callbacks import ExportEditedModel, Report, Resume
from data import UnlearnDataModule
from tests.conftest import DEMO
from zu_lightning import Method, ReadingOptions, Results, UnlearnModule
from zu_lightning.lm.tokens import TokenBatch
from zu_lightning.modules.outputs import checkpoint_path

WEIGHT = "model.layers.0.mlp.down_proj.weight"


@dataclass(frozen=True, kw_only=True)
class AscentMethod(Method):
    """What the module below does."""


class Ascent(UnlearnModule):
    """Gradient ascent on the answers to forget, on the output projections of the layers to edit."""

    def configure_model(self) -> None:
        super().configure_model()
        self.trained = nn.ModuleList(self.lm.projections[layer] for layer in self.layers).requires_grad_(True).train()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        rows, positions, tokens = batch.answer_positions()
        return -cross_entropy(self.lm.logits(batch, rows, positions), tokens)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.trained.parameters(), lr=1.0, momentum=0.9)


class KilledAfterOneEpoch(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def fit(root: Path, *callbacks: Callback, resume: bool = False) -> Ascent:
    """Two epochs of one step each on two facts of the demo."""
    module = Ascent(AscentMethod(), model_name_or_path=str(DEMO / "model"))
    data = UnlearnDataModule(
        str(DEMO / "facts.jsonl"), str(DEMO / "corpus.txt"), str(DEMO / "heldout.txt"), forget_num=2, retain_num=5,
        reading=ReadingOptions(corpus_documents=20, heldout_documents=5),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=2, default_root_dir=root, num_sanity_val_steps=-1,
        reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False, enable_model_summary=False,
        enable_progress_bar=False, log_every_n_steps=1, logger=False,
        callbacks=[ExportEditedModel(), Report(), Resume(), *callbacks],
    )  # fmt: skip
    data.connect(module)
    trainer.fit(module, data, ckpt_path=str(checkpoint_path(str(root))) if resume else None)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ascent")


@pytest.fixture(scope="module")
def ascent(root: Path) -> Ascent:
    return fit(root)


def test_it_is_trained_and_evaluated_before_and_after(ascent: Ascent) -> None:
    assert ascent.trainer.global_step == 2
    assert ascent.run.before["efficacy"] == 100
    assert ascent.run.after["efficacy_probability"] < 0.9 * ascent.run.before["efficacy_probability"]
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model").state_dict()
    edited = ascent.lm.model.state_dict()
    assert [name for name in base if not torch.equal(base[name], edited[name])] == [WEIGHT]


def test_its_model_and_results_are_exported(ascent: Ascent, root: Path) -> None:
    results = Results.read(root)
    assert results.method["name"] == "AscentMethod"
    assert results.after == ascent.run.after
    assert results.targets is None
    exported = AutoModelForCausalLM.from_pretrained(root / "model").state_dict()
    assert torch.equal(exported[WEIGHT], ascent.lm.weight(0))
    assert not (root / "adapter").exists()


def test_it_resumes_with_its_weights_and_its_optimizer(ascent: Ascent, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, KilledAfterOneEpoch())
    checkpoint = torch.load(checkpoint_path(str(tmp_path)))
    assert list(checkpoint["state_dict"]) == ["trained.0.weight"]
    resumed = fit(tmp_path, resume=True)
    assert torch.equal(resumed.lm.weight(0), ascent.lm.weight(0))
    assert resumed.run.before == ascent.run.before
    assert resumed.run.after == ascent.run.after
    assert not checkpoint_path(str(tmp_path)).exists()
