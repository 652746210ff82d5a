"""A causal language model whose MLP output projections can be read and edited."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zu_lightning.lm import architecture, hooks, offload
from zu_lightning.lm.hooks import Record
from zu_lightning.lm.loading import load_pretrained
from zu_lightning.lm.tokens import PaddedTokens, Prompt, tokenize
from zu_lightning.runtime.errors import InputError


class EditableLM:
    """A Hugging Face causal language model with access to its MLP output projections.

    Args:
        model: Any causal LM whose decoder layers have a dense MLP with one output projection.
        tokenizer: Its fast tokenizer.
        load_options: Arguments of ``from_pretrained`` with which the model was loaded.

    Attributes:
        layers: Decoder layers, lowest first.
        projections: For each layer, the output projection of its MLP.

    Raises:
        InputError: The decoder layers or their output projections cannot be found, or the tokenizer is not a fast one.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, load_options: dict[str, Any] | None = None
    ) -> None:
        if not tokenizer.is_fast:
            remedy = "it gives no character offsets, which locate the subject: load a fast tokenizer."
            raise InputError("tokenizer", type(tokenizer).__name__, remedy)
        self.model, self.tokenizer, self.load_options = model, tokenizer, load_options or {}
        model.requires_grad_(False).train(False)
        self.layers = architecture.decoder_layers(model)
        self.projections = [architecture.output_projection(layer, model) for layer in self.layers]
        self.normalizes_mlp_output = architecture.normalizes_mlp_output(self.layers[0])
        self._last_mlp = architecture.enclosing_mlp(model, self.projections[-1], self.layers[-1])

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, dtype: str = "auto", **kwargs: Any) -> "EditableLM":
        """Load model and tokenizer, see :func:`zu_lightning.lm.loading.load_pretrained`.

        With ``device_map`` a model that is spread over devices, main memory, and disk is edited like any other.
        """
        return cls(*load_pretrained(name_or_path, dtype, kwargs), kwargs)

    @property
    def name_or_path(self) -> str:
        """Hub id or directory of the unedited model; empty if it was made in memory."""
        return str(self.model.name_or_path or "")

    @property
    def device(self) -> torch.device:
        """Device of token ids, and of everything that is read from the model."""
        return offload.input_device(self.model)

    @property
    def is_dispatched(self) -> bool:
        """Whether accelerate has spread the model over several devices (``device_map``)."""
        return offload.is_dispatched(self.model)

    @property
    def context_length(self) -> int:
        """Maximum number of tokens that the model can read."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def weight(self, layer: int) -> Tensor:
        """W of a layer's output projection, d_out x d_in; to write, use :meth:`set_weight`."""
        return offload.read_parameter(self.projections[layer], "weight").to(self.device)

    def set_weight(self, layer: int, weight: Tensor) -> None:
        """Replace W of a layer's output projection, d_out x d_in, rounded to the dtype it is stored in."""
        offload.write_weight(self.projections[layer], weight)

    def bias(self, layer: int) -> Tensor | None:
        """Bias of a layer's output projection, d_out; most decoders have none."""
        if getattr(self.projections[layer], "bias", None) is None:
            return None
        return offload.read_parameter(self.projections[layer], "bias").to(self.device)

    def weight_name(self, layer: int) -> str:
        """Name of the module that holds ``weight(layer)``, as in ``model.named_modules()``."""
        return architecture.name_of(self.model, self.projections[layer])

    def record(self, tokens: PaddedTokens, modules: Sequence[nn.Module]) -> list[Record]:
        """Inputs and outputs of decoder layers or projections; nothing above the last of them is computed."""
        with torch.no_grad(), hooks.recording(modules, len(tokens.input_ids), self.device, stop=True) as records:
            self._forward(tokens)
        return records

    def logits(
        self,
        tokens: PaddedTokens,
        rows: Tensor,
        positions: Tensor,
        *,
        watched: Sequence[nn.Module] = (),
        **options: Any,
    ) -> Tensor:
        """Next-token logits at the given places only: the vocabulary is large, the answers are short.

        Args:
            tokens: Texts.
            rows: Row of each place.
            positions: Position of each place in its row.
            watched: Modules with a hook on them. The last layer's MLP is computed at the given places only, since no
                other place is read, unless one of these modules is in the last layer.
            options: More arguments of the model's forward.

        Returns:
            places x vocabulary, float32.
        """
        last = self.layers[-1]
        mlp = None if {*last.modules()}.intersection(watched) else self._last_mlp
        head = architecture.output_head(self.model)
        with hooks.input_selected(head, rows, positions), hooks.computed_at(mlp, rows, positions):
            logits: Tensor = self._forward(tokens, **options).logits
        return logits.float()

    def shifted(self, module: nn.Module, shift: Callable[[Tensor], Tensor], rows: int) -> AbstractContextManager[None]:
        """Within this context ``shift`` is applied to the output of ``module`` (rows x length x width)."""
        return hooks.shifted(module, shift, rows, self.device)

    def resumed(self, layer: int, hidden: Tensor | None) -> AbstractContextManager[None]:
        """Within this context the model starts at ``layer``, from its input (rows x length x width; ``None`` for 0)."""
        as_tuple = layer > 0 and self._layers_return_tuples
        return hooks.skipped(self.layers[:layer], hidden, as_tuple=as_tuple)

    def generate(self, prompt: str, max_new_tokens: int, *, chat: bool = False, **sampling: Any) -> str:
        """The model's continuation of a prompt (a user's message if ``chat``); greedy decoding by default."""
        ids = torch.tensor([tokenize(self.tokenizer, Prompt(prompt, chat=chat)).ids], device=self.device)
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **sampling}
        options["pad_token_id"] = self.tokenizer.pad_token_id or 0
        tokens = self.model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
        return str(self.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))

    def to(self, device: torch.device) -> "EditableLM":
        """Move the model to a device, unless it is spread over several.

        Raises:
            InputError: The device has no float64, in which edits are solved.
        """
        if device.type == "mps":
            raise InputError("accelerator", "mps", "MPS has no float64, in which edits are solved: use cpu.")
        if not self.is_dispatched:
            self.model.to(device)  # type: ignore[arg-type]
        return self

    @cached_property
    def _layers_return_tuples(self) -> bool:
        """Whether decoder layers return a tuple (transformers 4) or a tensor (5), tested with one token."""
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return hooks.returns_tuple(self.layers[0], lambda: self._forward(PaddedTokens(ids, torch.ones_like(ids))))

    def _forward(self, tokens: PaddedTokens, **options: Any) -> Any:
        options = {"use_cache": False} | options
        return self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **options)
