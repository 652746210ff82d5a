"""Context templates: texts before a prompt, so that a key does not depend on one context."""

from collections.abc import Sequence

import torch

from zu_lightning.lm.editable import EditableLM

CONTEXT_STARTS = ("The", "Therefore", "Because", "I", "You")
CONTEXT_LENGTH = 10
"""Number of tokens that a model adds to each of them."""


def sample_contexts(
    lm: EditableLM, starts: Sequence[str] = CONTEXT_STARTS, length: int = CONTEXT_LENGTH, seed: int = 0
) -> tuple[str, ...]:
    """The bare prompt's empty context, then one text per start, continued by the model, as MEMIT does.

    Args:
        lm: The model that continues each start, by sampling from its five most likely tokens.
        starts: First words.
        length: Number of tokens sampled after each.
        seed: Seed of the sampling; the global random state is not changed.

    Returns:
        ``1 + len(starts)`` contexts, the first empty.
    """
    contexts = [""]
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in starts:
            text = start + lm.generate(start, length, do_sample=True, top_k=5).rstrip()
            contexts.append(text if text.endswith(".") else f"{text}.")
    return tuple(contexts)
