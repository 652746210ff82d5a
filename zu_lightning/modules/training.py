"""What modules that train weights have in common: shares of a batch, the loss over all processes, checkpoints."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn.functional import log_softmax

from zu_lightning.gradient.method import Answers, Mean, joined, sequence_nll
from zu_lightning.gradient.weights import TrainedWeights
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import TokenBatch, TokenizedText, collate
from zu_lightning.runtime.distributed import all_reduce, process, rank_shard


def own_share(lm: EditableLM, texts: Sequence[TokenizedText]) -> TokenBatch | None:
    """This process's share of the texts of a step, on the model's device; ``None`` if it has none."""
    own = list(rank_shard(texts))
    return collate(own, lm.tokenizer).to(lm.device) if own else None


def answers_of(
    lm: EditableLM, batch: TokenBatch | None, reference: AbstractContextManager[None] | None = None
) -> Answers:
    """What the model says about the answers of a batch; without texts there are no rows.

    Args:
        lm: The model.
        batch: Texts with answers.
        reference: A context in which the model is as it was before training, to ask that one, without gradients;
            ``None`` for the present model.
    """
    if batch is None:
        none = torch.zeros(0, device=lm.device)
        return Answers(none, none, torch.zeros(0, 1, device=lm.device))
    rows, positions, tokens = batch.answer_positions()
    with reference or nullcontext(), torch.set_grad_enabled(reference is None):
        log_probability = log_softmax(lm.logits(batch, rows, positions), -1)
    nll, lengths = sequence_nll(log_probability, tokens, rows, len(batch.lengths))
    return Answers(nll, lengths, log_probability)


def loss_of_share(module: LightningModule, means: Sequence[Mean], trained: TrainedWeights) -> Tensor:
    """The loss of this process's share, so that DDP's mean over processes is the gradient of the whole loss.

    Logs the whole loss as ``train/loss``.
    """
    totals = torch.stack([mean.total.detach().double() for mean in means])
    counts = torch.tensor([mean.count for mean in means], dtype=torch.float64, device=totals.device)
    all_reduce(totals, counts)
    weights = torch.tensor([mean.weight for mean in means], dtype=torch.float64, device=totals.device)
    module.log("train/loss", (weights * totals / counts.clamp(min=1)).sum(), batch_size=1, prog_bar=True)
    # A process without a share of this step takes part with a gradient of zero.
    nothing = torch.stack([parameter.flatten()[0] for parameter in trained.learned()]).sum() * 0.0
    return joined(means, counts.tolist(), process()[1]) + nothing


def keep_learned(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Leave in a checkpoint what is trained, not the frozen weights around it."""
    learned = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in learned}
