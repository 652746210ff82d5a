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


def test_a_seed_gives_the_same_contexts_whatever_was_drawn_before(lm: EditableLM) -> None:
    torch.manual_seed(1)
    first = sample_contexts(lm, ("The", "You"), length=5, seed=4)
    torch.manual_seed(2)
    assert sample_contexts(lm, ("The", "You"), length=5, seed=4) == first
    assert sample_contexts(lm, ("The", "You"), length=5, seed=5) != first


def test_the_global_random_state_is_left_alone(lm: EditableLM) -> None:
    before = torch.random.get_rng_state()
    sample_contexts(lm, ("The",), length=5)
    assert torch.equal(torch.random.get_rng_state(), before)
