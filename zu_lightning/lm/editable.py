"""A causal language model whose MLP output projections can be read and edited.

The only module that knows how decoders are built. Everything else speaks of layers, lookup tokens, keys and values.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from zu_lightning.errors import InputError
from zu_lightning.lm.tokens import TokenBatch, tokenize
from zu_lightning.solvers import LowRankUpdate

PROJECTION_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
"""What decoders call an MLP's output projection: Llama, Qwen, Mistral, Gemma, Phi-3; GPT-2; GPT-NeoX; OPT; GPT-J."""


SOURCE_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")
"""Arguments of ``from_pretrained`` that say where a model comes from; others (``device_map``) say how it is loaded."""


@dataclass(frozen=True)
class EditReport:
    """What writing an update into a weight did.

    Attributes:
        relative_norm: Frobenius norm of the update divided by that of the weight before it.
        rank: Rank of the update (an upper bound: the width of its factors).
        stored_error: Norm of (change of the stored weight - update) divided by the norm of the update: what rounding
            to the weight's dtype took away.
    """

    relative_norm: float
    rank: int
    stored_error: float


@dataclass(frozen=True)
class Record:
    """What a module received and returned in one forward pass (each: rows x length x width, or some places of it)."""

    input: Tensor
    output: Tensor


class _AllSeenError(Exception):
    """Raised by a hook when everything asked for has been seen."""


class EditableLM:
    """A Hugging Face causal language model with access to its MLP output projections.

    Args:
        model: Any causal LM whose decoder layers have a dense MLP with one output projection.
        tokenizer: Its fast tokenizer.

    Attributes:
        updates: For each edited layer, the sum of the updates applied so far.
        load_options: How :meth:`from_pretrained` was told to load the model.

    Raises:
        InputError: The decoder layers or their output projections cannot be found, or the tokenizer is not a fast one.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer {type(tokenizer).__name__} gives no character offsets, by which the subject is found: "
                "load a fast tokenizer."
            )
        self.model = model
        model.requires_grad_(False).train(False)
        self.tokenizer = tokenizer
        self.layers = _decoder_layers(model)
        self.projections = [_output_projection(layer, model) for layer in self.layers]
        self.updates: dict[int, LowRankUpdate] = {}
        self.load_options: dict[str, Any] = {}
        self._layers_return_tuples = False

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, dtype: str = "auto", **kwargs: Any) -> "EditableLM":
        """Load model and tokenizer from the hub or a directory.

        Args:
            name_or_path: Hub id, or a directory written by ``save_pretrained``.
            dtype: ``auto`` (what the model says of itself), ``float32``, ``bfloat16`` or ``float16``.
            kwargs: More arguments of ``AutoModelForCausalLM.from_pretrained``, ``device_map`` for one: a model that is
                spread over devices, main memory and disk is edited and evaluated like any other.

        Raises:
            InputError: The model is missing, incomplete or no causal language model.
        """
        check_model(name_or_path, **kwargs)
        try:
            model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, **kwargs)
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **_source_options(kwargs))
        except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"model.model_name_or_path {str(name_or_path)!r} has a configuration, but weights or tokenizer cannot "
                f"be loaded: {_first_line(error)}"
            ) from error
        lm = cls(model, tokenizer)
        lm.load_options = kwargs
        return lm

    @property
    def name_or_path(self) -> str:
        """Where the unedited model came from; empty if it was made in memory."""
        return str(self.model.name_or_path or "")

    @property
    def device(self) -> torch.device:
        """Where token ids must be, and where everything that is read from the model is put."""
        if self.is_dispatched:
            accelerators = {place for place in self._places if place not in ("cpu", "disk")}
            return torch.device(min(accelerators, key=str, default="cpu"))
        return torch.device(self.model.device)

    @property
    def is_dispatched(self) -> bool:
        """Whether accelerate has spread the model over several places (``device_map``)."""
        return len(self._places) > 1 or "disk" in self._places

    @property
    def _places(self) -> set[int | str]:
        return set(getattr(self.model, "hf_device_map", {}).values())

    @property
    def identity(self) -> str:
        """A digest that other weights of the same name would not have: of some values of every parameter.

        Of a model of which nothing is offloaded: what is elsewhere cannot be looked at.
        """
        digest = hashlib.sha256(self.model.config.to_json_string().encode())
        for name, parameter in self.model.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(1, len(flat) // 256)].double().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def context_length(self) -> int:
        """Most tokens the model can read."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def weight(self, layer: int) -> Tensor:
        """W of a layer's output projection, d_out x d_in, whichever way the module stores it.

        A view, where the model is on one device; to write, use :meth:`set_weight`.
        """
        stored = self._stored(layer, "weight")
        return stored.mT if isinstance(self.projections[layer], Conv1D) else stored

    def set_weight(self, layer: int, weight: Tensor) -> None:
        """Replace W of a layer's output projection, d_out x d_in, rounded to the dtype it is stored in."""
        projection = self.projections[layer]
        weight = weight.mT if isinstance(projection, Conv1D) else weight
        stored = projection.get_parameter("weight")
        with torch.no_grad():
            if not stored.is_meta:
                stored.copy_(weight)
            else:
                _write_offloaded(projection, weight.detach().to("cpu", stored.dtype).contiguous())

    def bias(self, layer: int) -> Tensor | None:
        """Bias of a layer's output projection, d_out; most decoders have none."""
        return None if getattr(self.projections[layer], "bias", None) is None else self._stored(layer, "bias")

    def _stored(self, layer: int, name: str) -> Tensor:
        """A parameter of a layer's output projection, wherever it is."""
        projection = self.projections[layer]
        stored: Tensor = projection.get_parameter(name)
        return (_offloaded(projection)[name] if stored.is_meta else stored).to(self.device)

    @property
    def normalises_mlp_output(self) -> bool:
        """Whether the MLP's output is normalised before the residual stream gets it (Gemma 2 and 3, OLMo 2)."""
        return hasattr(self.layers[0], "post_feedforward_layernorm")

    def weight_name(self, layer: int) -> str:
        """Name of the module that holds ``weight(layer)``, as in ``model.named_modules()``."""
        return next(str(name) for name, module in self.model.named_modules() if module is self.projections[layer])

    def apply(self, layer: int, update: LowRankUpdate) -> EditReport:
        """Add an update to a layer's projection: computed in float64, rounded to the weight's dtype once.

        Args:
            layer: Index of the layer, from 0.
            update: Factors of the update.

        Returns:
            What was stored, compared with what was asked for.

        Raises:
            ValueError: The update holds NaN or infinite entries; the weight is then untouched.
        """
        weight = self.weight(layer)
        before = weight.detach().double()
        change = update.dense().detach().to(before)
        if not torch.isfinite(change).all():
            raise ValueError(f"the update of layer {layer} holds NaN or infinite entries: the weight is unchanged.")
        self.set_weight(layer, before + change)
        update = LowRankUpdate(update.left.detach().clone(), update.right.detach().clone())
        error = (self.weight(layer).detach().double() - before - change).norm()
        known = self.updates.get(layer)
        self.updates[layer] = (
            LowRankUpdate(torch.cat([known.left, update.left], 1), torch.cat([known.right, update.right]))
            if known
            else update
        )
        size = change.norm()
        return EditReport(
            relative_norm=(size / before.norm()).item(),
            rank=update.rank,
            stored_error=(error / size).item() if size > 0 else 0.0,
        )

    def record(self, batch: TokenBatch, modules: Sequence[nn.Module]) -> list[Record]:
        """Run the model and keep what ``modules`` receive and return; nothing above the last of them is computed.

        Args:
            batch: Texts.
            modules: Decoder layers or projections.

        Returns:
            One record for each module.
        """
        with torch.no_grad(), self.recording(modules, stop=True) as records:
            self._forward(batch)
        return records

    @contextmanager
    def recording(self, modules: Sequence[nn.Module], *, stop: bool = False) -> Iterator[list[Record]]:
        """Keep what ``modules`` receive and return in the forward pass that follows, in a list that it fills.

        Args:
            modules: Decoder layers or projections.
            stop: Whether to leave the context when the last of them has been seen.
        """
        seen: dict[int, Record] = {}
        records: list[Record] = []

        def keep(i: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                received = args[0] if args else kwargs["hidden_states"]
                seen[i] = Record(*(self._by_row(x.detach().to(self.device)) for x in (received, _hidden(output))))
                # Decoder layers return a tuple in transformers 4 and a tensor in 5; projections always a tensor.
                self._layers_return_tuples |= isinstance(output, tuple)
                if len(seen) == len(modules):
                    records.extend(seen[i] for i in range(len(modules)))
                    if stop:
                        raise _AllSeenError

            return hook

        with ExitStack() as stack:
            for i, module in enumerate(modules):
                stack.enter_context(_hooked(module.register_forward_hook(keep(i), with_kwargs=True)))
            with suppress(_AllSeenError):
                yield records

    def logits(self, batch: TokenBatch, rows: Tensor, positions: Tensor, **options: Any) -> Tensor:
        """Next-token logits at the given places only: the vocabulary is large, the answers are short.

        The last layer's MLP, from which no other place could read, is computed at these places only as well.

        Args:
            batch: Texts.
            rows: Row of each place.
            positions: Position of each place in its row.
            options: More arguments of the model's forward.

        Returns:
            places x vocabulary, float32.
        """

        def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][rows.to(args[0].device), positions.to(args[0].device)],)

        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        with _hooked(head.register_forward_pre_hook(select)), self._last_mlp_at(rows, positions):
            logits: Tensor = self._forward(batch, **options).logits
        return logits.float()

    @contextmanager
    def _last_mlp_at(self, rows: Tensor, positions: Tensor) -> Iterator[None]:
        """Within this context the last layer's MLP is zero except at the given places, unless somebody watches."""
        watched = any(module._forward_hooks for module in self.layers[-1].modules())
        mlp = self.model.get_submodule(self.weight_name(-1).rpartition(".")[0])
        if watched or mlp is self.layers[-1]:  # OPT has no module for its MLP
            yield
            return
        forward = mlp.forward

        def at_places(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            places = (rows.to(hidden.device), positions.to(hidden.device))
            output: Tensor = forward(hidden[places][None], *args, **kwargs)
            return output.new_zeros(hidden.shape).index_put(places, output[0])

        with _replaced_forward(mlp, at_places):
            yield

    @contextmanager
    def resumed(self, layer: int, hidden: Tensor | None) -> Iterator[None]:
        """Within this context the model starts at ``layer`` from its cached input; the layers below are not computed.

        Args:
            layer: Index of the layer that comes next.
            hidden: Its input, rows x length x width, as recorded for the same batch; not needed for layer 0.
        """

        def skip(*args: Any, **kwargs: Any) -> Any:
            return (hidden,) if self._layers_return_tuples else hidden

        with ExitStack() as stack:
            for below in self.layers[:layer]:
                stack.enter_context(_replaced_forward(below, skip))
            yield

    @contextmanager
    def shifted(self, module: nn.Module, shift: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within this context the output of ``module`` (rows x length x width) is replaced by ``shift`` of it."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = _hidden(output)
            shifted = shift(self._by_row(hidden).to(self.device)).to(hidden.device).view_as(hidden)
            return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

        with _hooked(module.register_forward_hook(hook)):
            yield

    def generate(self, prompt: str, max_new_tokens: int, *, chat: bool = False, **sampling: Any) -> str:
        """Go on from a prompt, greedily unless ``sampling`` (arguments of ``generate``) says otherwise.

        Args:
            prompt: One prompt: padding then plays no part.
            max_new_tokens: Most tokens to add.
            chat: Whether the prompt is put as a user's message, by the chat template.
            sampling: ``do_sample``, ``top_k``, ...

        Returns:
            What was added.
        """
        ids = torch.tensor([tokenize(self.tokenizer, prompt, chat=chat).ids], device=self.device)
        tokens = self.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            **{"do_sample": False, **sampling},
        )
        added = tokens[0, ids.shape[1] :]
        return str(self.tokenizer.decode(added, skip_special_tokens=True))

    def to(self, device: torch.device) -> "EditableLM":
        """Move the model to a device, unless it is spread over several.

        Raises:
            InputError: The device has no float64, in which edits are solved.
        """
        if device.type == "mps":
            raise InputError("trainer.accelerator: MPS has no float64, in which edits are solved: use cpu.")
        if not self.is_dispatched:
            self.model.to(device)  # type: ignore[arg-type]
        return self

    def to_device(self, batch: TokenBatch) -> TokenBatch:
        """The batch on the model's device."""
        return TokenBatch(**{field.name: getattr(batch, field.name).to(self.device) for field in fields(batch)})

    def _by_row(self, hidden: Tensor) -> Tensor:
        """``hidden`` as rows x length x width: OPT's MLP flattens rows and positions into one dimension."""
        return hidden if hidden.dim() == 3 else hidden.view(self._rows, -1, hidden.shape[-1])

    def _forward(self, batch: TokenBatch, **options: Any) -> Any:
        self._rows = len(batch.input_ids)
        options = {"use_cache": False} | options
        return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)


def check_model(name_or_path: str | Path, **load_options: Any) -> int:
    """Check that there is a causal language model behind a name, without loading its weights.

    Args:
        name_or_path: Hub id or directory.
        load_options: Arguments of ``from_pretrained``; those that say where the model comes from are heeded.

    Returns:
        The number of its decoder layers.

    Raises:
        InputError: It is missing, or is no causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, **_source_options(load_options))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.model_name_or_path {str(name_or_path)!r} is neither a model directory (with a config.json) nor a "
            f"model that the hub gives us: {_first_line(error)}"
        ) from error
    trained_as = config.architectures or []
    if type(config) not in AutoModelForCausalLM._model_mapping or any("MaskedLM" in name for name in trained_as):
        raise InputError(
            f"model.model_name_or_path {str(name_or_path)!r} is a {config.model_type!r} model, which is no causal "
            "language model: name a decoder such as Llama, Qwen, Mistral, Gemma, Phi, GPT-2, GPT-NeoX or OPT."
        )
    return int(config.get_text_config().num_hidden_layers)


def check_layers(layers: Sequence[int], count: int) -> None:
    """Refuse layers that do not exist, are named twice or are out of order (the lowest is edited first).

    Args:
        layers: Indices from 0.
        count: Number of layers that the model has.

    Raises:
        InputError: See above.
    """
    missing = [layer for layer in layers if not 0 <= layer < count]
    if missing or not layers:
        raise InputError(f"model.layers {list(layers)}: layers {missing} do not exist, the model has 0..{count - 1}.")
    if list(layers) != sorted(set(layers)):
        raise InputError(f"model.layers {list(layers)} must be in increasing order, each layer once.")


def _source_options(load_options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in load_options.items() if name in SOURCE_OPTIONS}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"no list of {count} decoder layers was found in a {type(model).__name__}.")


def _output_projection(layer: nn.Module, model: PreTrainedModel) -> nn.Module:
    width = model.config.get_text_config().hidden_size
    name: str
    module: nn.Module
    for name, module in reversed(list(layer.named_modules())):
        if name.split(".")[-1] not in PROJECTION_NAMES or "attn" in name or "attention" in name or "expert" in name:
            continue
        outputs = module.nf if isinstance(module, Conv1D) else getattr(module, "out_features", None)
        if outputs == width:
            return module
    raise InputError(
        f"a {type(model).__name__} has decoder layers without a dense MLP output projection (looked for "
        f"{', '.join(PROJECTION_NAMES)} with {width} outputs; experts of a mixture are not edited)."
    )


def _hidden(output: Any) -> Tensor:
    """The hidden states in what a decoder layer returns: a tensor in transformers 5, a tuple before."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _offloaded(projection: nn.Module) -> Any:
    """Accelerate's map of a module's weights that are not on the module."""
    return projection._hf_hook.weights_map  # type: ignore[union-attr]


def _write_offloaded(projection: nn.Module, weight: Tensor) -> None:
    """Replace a weight that accelerate keeps in main memory or on disk; from then on it is in main memory."""
    weights, name = _offloaded(projection), "weight"
    while isinstance(weights, PrefixedDataset):
        weights, name = weights.dataset, weights.prefix + name
    (weights.state_dict if isinstance(weights, OffloadedWeightsLoader) else weights)[name] = weight


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
