"""Context managers that record or change what the modules of a model compute in a forward pass.

Shapes: R rows (texts), T positions of a row, D width of a module's output, P places (each a row and a position).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Record:
    """A module's input and output in one forward pass (R x T x D for decoder layers and projections)."""

    input: Tensor
    output: Tensor


class _AllSeenError(Exception):
    """Raised by a hook to end a forward pass once all modules have been recorded."""


@contextmanager
def recording(
    modules: Sequence[nn.Module], rows: int, device: torch.device, *, stop: bool = False
) -> Iterator[list[Record]]:
    """Record inputs and outputs of ``modules`` in the next forward pass, in a list that the pass fills.

    Args:
        modules: Decoder layers or projections.
        rows: R, number of texts in that pass.
        device: Where to put the records.
        stop: Whether to leave the context once all of them have been recorded.
    """
    seen: dict[int, Record] = {}
    records: list[Record] = []

    def keep(i: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            seen[i] = Record(*(_by_row(x.detach().to(device), rows) for x in (hidden, _hidden(output))))
            if len(seen) == len(modules):
                records.extend(seen[i] for i in range(len(modules)))
                if stop:
                    raise _AllSeenError

        return hook

    with ExitStack() as stack:
        for i, module in enumerate(modules):
            stack.enter_context(hooked(module.register_forward_hook(keep(i), with_kwargs=True)))
        with suppress(_AllSeenError):
            yield records


@contextmanager
def shifted(module: nn.Module, shift: Callable[[Tensor], Tensor], rows: int, device: torch.device) -> Iterator[None]:
    """Within this context ``shift`` is applied to the output of ``module`` (R x T x D, on ``device``)."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = _hidden(output)
        changed = shift(_by_row(hidden, rows).to(device)).to(hidden.device).view_as(hidden)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with hooked(module.register_forward_hook(hook)):
        yield


@contextmanager
def skipped(layers: Iterable[nn.Module], hidden: Tensor | None, *, as_tuple: bool) -> Iterator[None]:
    """Within this context ``layers`` compute nothing and return ``hidden`` (R x T x D), in a tuple if ``as_tuple``."""

    def skip(*args: Any, **kwargs: Any) -> Any:
        return (hidden,) if as_tuple else hidden

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_replaced_forward(layer, skip))
        yield


@contextmanager
def computed_at(mlp: nn.Module | None, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Within this context an MLP, if given, is computed only at the given P places; elsewhere its output is zero."""
    if mlp is None:
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
def input_selected(module: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[None]:
    """Within this context ``module`` receives its input at the given P places only (P x D)."""

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows.to(args[0].device), positions.to(args[0].device)],)

    with hooked(module.register_forward_pre_hook(select)):
        yield


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """Remove a hook, given by its handle, when the context ends."""
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


def output_of(module: nn.Module, forward: Callable[[], Any], rows: int, device: torch.device) -> Tensor:
    """The output of ``module`` (R x T x D) when ``forward`` runs the model; nothing above it is computed.

    Unlike :func:`recording` it keeps gradients.
    """
    return _by_row(_hidden(_first_output(module, forward)), rows).to(device)


def returns_tuple(module: nn.Module, forward: Callable[[], Any]) -> bool:
    """Whether ``module`` returns a tuple when ``forward`` runs the model; nothing above it is computed."""
    with torch.no_grad():
        return isinstance(_first_output(module, forward), tuple)


def _first_output(module: nn.Module, forward: Callable[[], Any]) -> Any:
    """Run the model up to the first call of ``module``, and return that call's output."""
    outputs: list[Any] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)
        raise _AllSeenError

    with hooked(module.register_forward_hook(stop)), suppress(_AllSeenError):
        forward()
    return outputs[0]


def _hidden(output: Any) -> Tensor:
    """The hidden states in a decoder layer's output: a tensor in transformers 5, the first of a tuple in 4."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _by_row(hidden: Tensor, rows: int) -> Tensor:
    """``hidden`` as R x T x D: OPT's MLP flattens rows and positions into one dimension."""
    return hidden if hidden.dim() == 3 else hidden.view(rows, -1, hidden.shape[-1])
