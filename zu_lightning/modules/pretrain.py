"""Train a small Llama from scratch: how the demo model was made."""

import math
from pathlib import Path

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase


class PretrainModule(LightningModule):
    """Next-token training of a randomly initialized Llama.

    Args:
        vocab_size: Size of the vocabulary.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP's hidden layer, the ``d_in`` of the projections that unlearning edits.
        num_layers: Number of decoder layers.
        num_heads: Number of attention heads.
        num_key_value_heads: Number of heads of the attention's keys and values.
        context_length: Maximum number of tokens in a sequence.
        learning_rate: Peak of the schedule: linear warm-up, then cosine to a tenth.
        warmup_steps: Number of steps until the peak.
        decay_steps: Number of steps until the end of the decay; training may stop earlier.
        weight_decay: AdamW's decoupled weight decay.
    """

    def __init__(
        self,
        vocab_size: int = 1408,
        hidden_size: int = 384,
        intermediate_size: int = 896,
        num_layers: int = 3,
        num_heads: int = 6,
        num_key_value_heads: int = 2,
        context_length: int = 256,
        learning_rate: float = 2e-3,
        warmup_steps: int = 200,
        decay_steps: int = 2500,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps, self.decay_steps = warmup_steps, decay_steps
        self.language_model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                num_key_value_heads=num_key_value_heads,
                max_position_embeddings=context_length,
                # Llama's 0.02 is made for widths of thousands; here it makes few directions carry all that is known.
                initializer_range=hidden_size**-0.5,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats of ``tokens`` (batch x length)."""
        loss: Tensor = self.language_model(input_ids=tokens, labels=tokens).loss
        return loss

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of one batch of token blocks."""
        loss: Tensor = self(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the loss of a batch of unseen text."""
        self.log("val/loss", self(batch), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=self.weight_decay
        )

        def factor(step: int) -> float:
            warmup = min(1.0, (step + 1) / self.warmup_steps)
            return warmup * (0.55 + 0.45 * math.cos(math.pi * min(1.0, step / self.decay_steps)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def save_half(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write model and tokenizer as a directory of float16 weights whose configuration says float32."""
        halves: dict[int, Tensor] = {}
        state = {
            # Tied weights stay one tensor, so that they are written once.
            name: halves.setdefault(tensor.data_ptr(), tensor.detach().half().cpu())
            for name, tensor in self.language_model.state_dict().items()
        }
        self.language_model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
