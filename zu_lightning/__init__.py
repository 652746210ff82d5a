"""zu-lightning: make a language model forget, exactly and measurably (ZeroUnlearn, arXiv 2605.18879)."""

from zu_lightning.analysis.tracing import CausalTrace, LayerTrace, causal_trace
from zu_lightning.distributed import check_identical, own_share
from zu_lightning.errors import InputError
from zu_lightning.evaluation.evaluate import EvaluationBatch, evaluate, evaluation_batches
from zu_lightning.facts.fact import Fact, Query, facts_by_id, read_facts, split_facts
from zu_lightning.facts.texts import read_texts
from zu_lightning.lm.contexts import sample_contexts
from zu_lightning.lm.editable import EditableLM, EditReport
from zu_lightning.lm.export import ExportCheck, check_export, export_adapter, export_model
from zu_lightning.methods.rules import AlphaEdit, Memit, Rome, Rule, ZeroUnlearn, ZeroUnlearnGD, ZeroUnlearnSoft
from zu_lightning.methods.unlearning import (
    Preparation,
    UnlearnResult,
    layer_problem,
    prepare,
    retain_documents,
    unlearn,
)
from zu_lightning.modules.base import UnlearnModule
from zu_lightning.modules.pretrain import PretrainModule
from zu_lightning.problem.keys import LayerProblem, lookup_keys
from zu_lightning.problem.latents import LatentOptions, Latents, neutral_targets, original_values
from zu_lightning.problem.moments import second_moments
from zu_lightning.solvers import LowRankUpdate
from zu_lightning.timing import timed

__all__ = [
    "AlphaEdit",
    "CausalTrace",
    "EditReport",
    "EditableLM",
    "EvaluationBatch",
    "ExportCheck",
    "Fact",
    "InputError",
    "LatentOptions",
    "Latents",
    "LayerProblem",
    "LayerTrace",
    "LowRankUpdate",
    "Memit",
    "Preparation",
    "PretrainModule",
    "Query",
    "Rome",
    "Rule",
    "UnlearnModule",
    "UnlearnResult",
    "ZeroUnlearn",
    "ZeroUnlearnGD",
    "ZeroUnlearnSoft",
    "causal_trace",
    "check_export",
    "check_identical",
    "evaluate",
    "evaluation_batches",
    "export_adapter",
    "export_model",
    "facts_by_id",
    "layer_problem",
    "lookup_keys",
    "neutral_targets",
    "original_values",
    "own_share",
    "prepare",
    "read_facts",
    "read_texts",
    "retain_documents",
    "sample_contexts",
    "second_moments",
    "split_facts",
    "timed",
    "unlearn",
]
