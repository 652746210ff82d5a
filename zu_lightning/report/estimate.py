"""How long a run will take, phase by phase, before it begins: its work is counted, and the model's speed measured.

Phases have the names of ``seconds`` in ``metrics.json``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.measurement import Attacks
from zu_lightning.attacks.presets import attacks_of, attacks_work
from zu_lightning.editing.closed_forms import NullSpaceMethod
from zu_lightning.editing.latent_rows import PASS_TOKENS
from zu_lightning.editing.method import EditingMethod, LatentOptions
from zu_lightning.editing.moments import moments_work
from zu_lightning.editing.preparation import same_subject_facts
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.request import Request
from zu_lightning.evaluation.scores import EvaluationBatch
from zu_lightning.facts.fact import Fact
from zu_lightning.gradient.method import GradientMethod
from zu_lightning.lm.batching import alike, batches
from zu_lightning.lm.contexts import CONTEXT_LENGTH, CONTEXT_STARTS
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.tokens import Prompt, TokenizedText, tokenize_all
from zu_lightning.lm.work import Work, suffix_work, texts_work
from zu_lightning.report.measurements import COMPLETION_TOKENS, samples
from zu_lightning.runtime.cache import Cache
from zu_lightning.runtime.distributed import process
from zu_lightning.runtime.timing import in_words

WORDS = {"moments": "retain text", "keys_and_values": "keys", "null_space": "null space"}
"""What a line for a reader calls a phase, where that is not its name."""
STEPS_TAKEN = 0.6
"""Share of the steps that a fact takes until its loss is below the tolerance: 0.4 on the demo, 0.8 on SmolLM2."""
LEAST = 0.03
"""Phases that take a smaller share of the whole are not named."""
LOOKED_AT = 200
"""Number of facts from which the work of all of them is estimated, where there are more."""
CHECKED, CHECKS, BYTES_PER_SECOND = 16, 5, 5e8
"""Of an export: prompts on which it is compared, passes over them, and how fast it is written."""
EIGENVECTORS, EIGENVALUES = 25.0, 10.0
"""Eigenvectors, and eigenvalues alone, of a matrix of width d take as long as products with so many times d^3 flop."""


@dataclass(frozen=True)
class Phase:
    """A phase of a run.

    Attributes:
        work: What is computed once.
        times: How often.
        seconds: What it takes besides, in all.
    """

    work: Work
    times: int = 1
    seconds: float = 0.0


def told(seconds: Mapping[str, float], times: Mapping[str, int]) -> str:
    """One line for a reader; phases that hardly count are left out.

    Args:
        seconds: By phase.
        times: How often the same is done in a phase; once by default.

    Example:
        >>> told({"evaluation": 24.2, "solve": 0.1, "moments": 10.0}, {"evaluation": 2})
        'this run will take about 34 s on this machine: evaluation 2 x 12 s, retain text 10 s'
    """
    whole = sum(seconds.values())
    parts = []
    for phase, each in seconds.items():
        count = times.get(phase, 1)
        if count and each > LEAST * whole:
            parts.append(f"{WORDS.get(phase, phase)} {f'{count} x ' if count > 1 else ''}{in_words(each / count)}")
    return f"this run will take about {in_words(whole)} on this machine: {', '.join(parts)}"


def evaluation_work(evaluation: Iterable[EvaluationBatch | None]) -> Work:
    """One evaluation of this process's batches."""
    work = Work()
    for batch in evaluation:
        if batch is not None:
            places = len(batch.texts.answer_positions()[0])
            work += Work(batch.texts.input_ids.numel(), places, 1)
    return work


def attacks_phase(lm: EditableLM, request: Request, attacks: Attacks, layers: Sequence[int], load: float) -> Phase:
    """Attacks before and after, and on the gold model; ``load`` is how long loading a model takes, in seconds."""
    context = AttackContext.of(request, attacks.facts)
    chosen = attacks_of(attacks.preset, len(lm.layers), {})
    work = attacks_work(lm, context, chosen) * (1 / process()[1])
    known = open_cache(request.cache, lm, layers).holds("attack", chosen[:1], context)
    if attacks.gold is None:
        return Phase(work, 1 if known else 2)
    return Phase(work, 1 if known else 3, load)


def completions_work(lm: EditableLM, request: Request) -> Work:
    """Completions before and after: one token in each pass."""
    prompts = tokenize_all(lm.tokenizer, samples(request))
    steps = COMPLETION_TOKENS * len(prompts)
    return 2 * Work(sum(len(prompt.ids) for prompt in prompts), steps, steps)


def export_phase(lm: EditableLM, request: Request, load: float) -> Phase:
    """Writing the model, loading it and the base, and comparing them; ``load`` is how long one of these takes."""
    prompts = tokenize_all(lm.tokenizer, request.forget[:CHECKED])
    tokens = len(prompts) * max(len(prompt.ids) for prompt in prompts)
    size = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
    return Phase(CHECKS * Work(tokens, tokens, 1), seconds=2 * load + size / BYTES_PER_SECOND)


def editing_works(
    lm: EditableLM, request: Request, method: EditingMethod, layers: Sequence[int], cache: Cache, neutral: str
) -> dict[str, Work]:
    """From the facts to the last edited layer."""
    latents, depth, size = method.latents, len(lm.layers), request.text.reading.batch_tokens
    (facts, times), (protect, protect_times) = map(_some, (request.forget, request.protect))
    variants = PromptVariants(
        ("", *(f"{start}{CONTEXT_LENGTH * ' a'}." for start in CONTEXT_STARTS))[: latents.contexts],
        request.relations.rephrased(facts, latents.templates, request.seed),
        request.relations.examples(facts, latents.examples, request.seed, without={fact.id for fact in request.retain}),
    )
    moments = moments_work(lm, request.text, layers, cache)
    targets = times * targets_work(lm, request, facts, method, replace(variants, examples={}), layers[-1], neutral)
    keys, solve = Work(), Work()
    for layer in layers:
        keys += times * keys_work(lm, facts, variants, (layer + 1) / depth, size)
        keys += protect_times * keys_work(lm, protect, variants, (layer + 1) / depth, size)
        keys += times * (layers[-1] + 1) / depth * texts_work(tokenize_all(lm.tokenizer, facts), size)
        if method.needs_values:
            keys += times * _unchanged_work(lm, facts, variants.contexts)
        solve += Work(flop=_solve_flop(lm, layer, method, request, variants.count(facts)))
    if method.reweighting_iterations:  # mostly, no second one is needed
        solve += times * texts_work(tokenize_all(lm.tokenizer, [row.prompt() for row in variants.rows(facts)]), size)
    shared = {"moments": moments, "targets": targets, "keys_and_values": keys}
    return {phase: work * (1 / process()[1]) for phase, work in shared.items()} | {"solve": solve}


def spectrum_work(lm: EditableLM, layers: Sequence[int]) -> Work:
    """Eigenvalues of each layer's second moment, for a picture."""
    return Work(flop=sum(EIGENVALUES * lm.weight(layer).shape[1] ** 3 for layer in layers))


def targets_work(
    lm: EditableLM,
    request: Request,
    facts: Sequence[Fact],
    method: EditingMethod,
    variants: PromptVariants,
    layer: int,
    neutral: str,
) -> Work:
    """Optimization of the neutral targets after a layer, with its references."""
    latents, by_reference = method.latents, method.target_kind == "reference"
    about = same_subject_facts(request) if latents.same_subject_weight else {}
    put, keep = variants.rows(facts), list[Fact]()
    for fact in facts:
        keep += [fact.essence] if fact.essence is not None and latents.kl_weight else []
        keep += about.get(fact.id, ())
    asked = [row.prompt("" if by_reference else neutral) for row in put]
    texts = tokenize_all(lm.tokenizer, [*asked, *map(Prompt.about, keep)])
    numbers = [row.number for row in put] + [-1] * len(keep)
    groups = -(-len(facts) // latents.facts_per_batch)
    above, batch_tokens = 1 - (layer + 1) / len(lm.layers), request.text.reading.batch_tokens
    work = suffix_work(texts, numbers) + 2 * texts_work(tokenize_all(lm.tokenizer, facts), batch_tokens)
    chosen = _rows_per_step(latents, len(put) / len(facts), len(keep) / len(facts)) * len(facts)
    work += 3 * _steps(latents, len(put) / len(facts)) * _step_work(texts, chosen, above, groups)
    if by_reference:
        names = len(request.unknown_subjects) or latents.unknown_subjects
        different = {(request.relations.names[row.fact.id], row.fact.template): row.fact for row in put}
        work += names * texts_work(tokenize_all(lm.tokenizer, different.values()), batch_tokens)
    return work


def _some(facts: Sequence[Fact]) -> tuple[Sequence[Fact], float]:
    """Some of many facts, evenly spread, and how many times as many they stand for."""
    some = facts[:: -(-len(facts) // LOOKED_AT)] if facts else facts
    return some, len(facts) / max(1, len(some))


def _step_work(texts: Sequence[TokenizedText], chosen: float, above: float, groups: int) -> Work:
    """One step with some of the rows, from their lookup tokens on, through the layers above, in groups of facts."""
    lengths = [len(text.ids) - (text.answer < len(text.ids)) - text.lookup for text in texts]
    share = chosen / len(texts)
    parts = alike(lengths, round(groups * PASS_TOKENS / share))
    tokens = sum(len(part) * max(lengths[i] for i in part) for part in parts)
    return Work(above * share * tokens, chosen, above * groups * len(parts))


def _rows_per_step(latents: LatentOptions, put: float, keep: float) -> float:
    """Rows of a fact in one step, of those that it has in all."""
    if latents.prompts_per_step is None:
        return put + keep
    others = latents.prompts_per_step - 1
    return 1 + min(others, put - 1) + min(max(1, others), keep)


def _steps(latents: LatentOptions, put: float) -> float:
    """How many steps a fact takes; one that is only seen in parts is never done early."""
    in_parts = latents.prompts_per_step is not None and latents.prompts_per_step < put
    return latents.steps if in_parts or not latents.tolerance else STEPS_TAKEN * latents.steps


def keys_work(lm: EditableLM, facts: Sequence[Fact], variants: PromptVariants, share: float, batch_tokens: int) -> Work:
    """Passes that read the keys of facts in all variants, after a share of the layers."""
    after_context = replace(variants, contexts=("",))
    longest = tokenize_all(lm.tokenizer, [after_context.longest(fact) for fact in facts])
    work = Work()
    for indices in batches(longest, max(1, batch_tokens // variants.count(facts))):
        rows = variants.rows([facts[i] for i in indices])
        texts = tokenize_all(lm.tokenizer, [row.prompt() for row in rows])
        work += suffix_work(texts, [row.number for row in rows], share)
    return work


def _unchanged_work(lm: EditableLM, facts: Sequence[Fact], contexts: Sequence[str]) -> Work:
    """Original values: most are optimal from the start."""
    texts = tokenize_all(lm.tokenizer, [Prompt.about(fact, answer=fact.target) for fact in facts])
    places = sum(len(text.ids) - text.answer for text in texts)
    return len(contexts) * Work(sum(len(text.ids) for text in texts), places)


def _solve_flop(lm: EditableLM, layer: int, method: EditingMethod, request: Request, variants: int) -> float:
    """A layer's solution: factors of the second moment, once all columns are added to it."""
    d_in = lm.weight(layer).shape[1]
    columns = len(request.protect) + request.size * variants
    once = d_in**3 + 2 * columns * d_in**2
    return (1 + min(1, method.reweighting_iterations)) * once + (
        EIGENVECTORS * d_in**3 if isinstance(method, NullSpaceMethod) else 0.0
    )


def training_work(
    lm: EditableLM, request: Request, method: GradientMethod, layers: Sequence[int], neutral: str
) -> Work:
    """All epochs of a gradient method."""
    training, facts = method.training, request.forget
    answer = neutral if method.teaches_neutral_target else None
    asked = [Prompt.about(fact, answer=answer or fact.target) for fact in facts]
    forget = tokenize_all(lm.tokenizer, asked)
    read = _mean_work(forget)
    if method.weights == "all" or (method.weights == "lora" and method.lora.all_linear):
        back = 2.0
    else:  # gradients end at the lowest trained layer, and most weights have none
        back = 1 - layers[0] / len(lm.layers)
    work = (1 + back + method.uses_reference) * read
    if method.retain_weight:
        if request.protect:
            keep = tokenize_all(lm.tokenizer, [Prompt.about(fact, answer=fact.target) for fact in request.protect[:50]])
        else:
            documents = tokenize_all(lm.tokenizer, request.text.documents[:50], training.retain_length)
            keep = [TokenizedText(text.ids, 0, 1) for text in documents]
        work += (1 + back) * _mean_work(keep)
    steps = -(-len(facts) // training.batch_size)
    each = replace(work * len(facts), passes=work.passes * steps)
    return training.epochs * each * (1 / process()[1])


def _mean_work(texts: Sequence[TokenizedText]) -> Work:
    """The mean over texts, in one pass."""
    tokens = max(len(text.ids) for text in texts)
    return Work(tokens, sum(len(text.ids) - text.answer for text in texts) / len(texts), 1)
