"""Results of a run, from the state of its module."""

import resource
import sys
from typing import TYPE_CHECKING, Any

import accelerate
import lightning
import torch
import transformers
from torch import Tensor

import zu_lightning
from zu_lightning.attacks.verdict import verdict
from zu_lightning.editing.latents import NeutralTargets
from zu_lightning.evaluation.intervals import score_intervals, shares
from zu_lightning.evaluation.queries import LEAK, fact_sums
from zu_lightning.facts.fact import Fact
from zu_lightning.report.measurements import samples
from zu_lightning.report.results import Completion, FactResult, Results, TargetScores
from zu_lightning.runtime.files import digest
from zu_lightning.runtime.timing import now

if TYPE_CHECKING:
    from zu_lightning.modules.base import UnlearnModule

OF_A_FACT = ("efficacy", "generalization", "specificity", "multi_hop")
"""Metrics whose queries belong to the facts to forget."""


def identity_of(module: "UnlearnModule") -> dict[str, str]:
    """Digests and versions of the model, data, and code that a fit begins with."""
    request = module.request
    libraries = (zu_lightning, torch, lightning, transformers, accelerate)
    return {
        "weights before": module.digest_before,
        "tokenizer": digest(sorted(module.lm.tokenizer.get_vocab().items())),
        "facts to forget": digest(*request.forget),
        "draw": str(request.seed),
        "retain text": digest(*request.text.documents),
        "settings": digest(sorted(module.settings().items())),
        "versions": ", ".join(f"{library.__name__} {library.__version__}" for library in libraries),
    }


def results_of(module: "UnlearnModule", *, texts: bool = True) -> Results:
    """Everything that a run has measured.

    Args:
        module: Its module.
        texts: Whether prompts, answers, and completions are among it.
    """
    run, forget = module.run, module.request.forget
    by_fact = {when: fact_sums(tables, run.queries.get("before")) for when, tables in run.queries.items()}
    attacks: dict[str, dict[str, Any]] = run.measured.get("attacks", {})
    tried = None
    if {"before", "after"} <= attacks.keys():
        edited = attacks["after"]
        tried = verdict(edited["model"], attacks["before"]["model"], edited.get("gold"), chance=edited.get("chance"))
    return Results(
        before=run.before,
        after=run.after,
        facts=len(forget),
        seconds=run.seconds,
        estimated_seconds=module.estimated_seconds,
        peak_memory_gib=_peak_memory_gib(module.lm.device),
        model=module.model_name_or_path + (" (a tiny random stand-in)" if module.random_tiny_model else ""),
        method=module.method.describe(),
        targets=None if run.targets is None else _target_scores(run.targets),
        layers={key.layer: edit.scores for key, edit in run.edits.items() if key.request == module.request.number},
        forgotten=[fact.id for fact in forget],
        retained=[fact.id for fact in module.request.retain],
        attacks={} if tried is None else tried.scores_by_name(),
        comparisons={} if tried is None else tried.comparisons,
        verdict=None if tried is None else tried.sentence,
        intervals={when: score_intervals(sums) for when, sums in by_fact.items()},
        per_fact=[_fact_result(by_fact, i, fact, texts=texts) for i, fact in enumerate(forget)],
        completions=_completions(module) if texts else [],
        identity=run.identity | {"weights after": module.weights_digest()},
        earlier={
            when: {str(number): scores for number, scores in found.items()}
            for when, found in run.measured.get("previous", {}).items()
        },
        started=run.started,
        finished=now(),
    )


def _fact_result(by_fact: dict[str, dict[str, Tensor]], i: int, fact: Fact, *, texts: bool) -> FactResult:
    before, after = (_scores_of_fact(by_fact.get(when, {}), i) for when in ("before", "after"))
    return FactResult(fact.id, fact.prompt if texts else None, fact.target if texts else None, before, after)


def _scores_of_fact(by_metric: dict[str, Tensor], i: int) -> dict[str, float]:
    known = {name: by_metric[name][i] for name in OF_A_FACT if name in by_metric and i < len(by_metric[name])}
    scores = {name: 100 * shares(sums[None]).item() for name, sums in known.items() if sums[2] > 0}
    if "efficacy" in known:
        scores["probability"] = (known["efficacy"][1] / known["efficacy"][2]).item()
    if LEAK in by_metric and by_metric[LEAK][i : i + 1, 2].any():
        scores[LEAK] = by_metric[LEAK][i, 0].item()
    return scores


def _completions(module: "UnlearnModule") -> list[Completion]:
    completions, facts = module.run.measured.get("completions", {}), samples(module.request)
    after = completions.get("after", [])
    before = completions.get("before") or [None] * len(after)
    forget = {fact.id for fact in module.request.forget}
    return [
        Completion(fact.prompt, was, said, fact.id in forget)
        for fact, was, said in zip(facts, before, after, strict=False)
    ]


def _target_scores(targets: NeutralTargets) -> TargetScores:
    reachable = 100 * targets.original_lost.double().mean().item()
    return TargetScores(reachable, targets.probability.mean().item())


def _peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the model's device, or of this process if that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
