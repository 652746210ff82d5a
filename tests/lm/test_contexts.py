"""Context templates are sampled from the model, by their seed alone."""

import torch

from zu_lightning import EditableLM, sample_contexts
from zu_lightning.lm.contexts import CONTEXT_STARTS


def test_the_first_context_is_empty_and_the_others_are_sentences(lm: EditableLM) -> None:
    contexts = sample_contexts(lm)
    assert contexts[0] == ""
    assert len(contexts) == 1 + len(CONTEXT_STARTS)
    for start, context in zip(CONTEXT_STARTS, contexts[1:], strict=True):
        assert context.startswith(start)
        assert context.endswith(".")
        assert not context.endswith("..")
        assert len(context) > len(start) + 1


def test_contexts_depend_on_the_seed_alone_and_leave_the_global_random_state(lm: EditableLM) -> None:
    contexts = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        contexts.append(sample_contexts(lm, ("The", "You"), length=5, seed=4))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert contexts[0] == contexts[1] != sample_contexts(lm, ("The", "You"), length=5, seed=5)
