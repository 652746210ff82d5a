"""zu-lightning: make a language model forget, exactly and measurably (ZeroUnlearn, arXiv 2605.18879)."""

from zu_lightning.editing.editor import LayerEdit, LayerScores, UnlearnResult, edit_layers, unlearn, write_update
from zu_lightning.editing.keys import lookup_keys
from zu_lightning.editing.latent_problem import LatentOptions
from zu_lightning.editing.latents import NeutralTargets, TargetOptions, neutral_targets, original_values
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.moments import SecondMoment, second_moments
from zu_lightning.editing.preparation import Preparation, layer_problem, prepare
from zu_lightning.editing.request import Request
from zu_lightning.editing.rules import AlphaEdit, Erase, Memit, Rome, Rule, ZeroUnlearn, ZeroUnlearnGD, ZeroUnlearnSoft
from zu_lightning.evaluation.scores import EvaluationBatch, evaluate, evaluation_batches
from zu_lightning.facts.fact import Fact, FactToken, Query
from zu_lightning.facts.reading import facts_by_id, read_facts
from zu_lightning.facts.splits import split_facts
from zu_lightning.facts.texts import ReadingOptions, RetainText, read_texts, retain_documents
from zu_lightning.gradient.losses import (
    NPO,
    RMU,
    FineTuning,
    GradientAscent,
    GradientDifference,
    Loss,
    SimNPO,
)
from zu_lightning.gradient.weights import LoraOptions
from zu_lightning.lm.contexts import sample_contexts
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.export import ExportCheck, check_export, export_adapter, export_model
from zu_lightning.lm.updates import EditReport, apply_update
from zu_lightning.modules.base import UnlearnModule
from zu_lightning.modules.editing import EditingModule
from zu_lightning.modules.evaluation import EvaluationModule
from zu_lightning.modules.gradient import GradientModule, TrainingOptions
from zu_lightning.modules.pretrain import PretrainModule
from zu_lightning.modules.state import EditKey, RunState
from zu_lightning.report.results import Results, TargetScores
from zu_lightning.runtime.distributed import check_identical, rank_shard
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest, replacing
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate
from zu_lightning.tracing.tracing import CausalTrace, LayerTrace, causal_trace

__version__ = "0.1.0"

__all__ = [
    "NPO",
    "RMU",
    "AlphaEdit",
    "CausalTrace",
    "EditKey",
    "EditReport",
    "EditableLM",
    "EditingModule",
    "Erase",
    "EvaluationBatch",
    "EvaluationModule",
    "ExportCheck",
    "Fact",
    "FactToken",
    "FineTuning",
    "GradientAscent",
    "GradientDifference",
    "GradientModule",
    "InputError",
    "LatentOptions",
    "LayerEdit",
    "LayerProblem",
    "LayerScores",
    "LayerTrace",
    "LoraOptions",
    "Loss",
    "LowRankUpdate",
    "Memit",
    "Monitor",
    "NeutralTargets",
    "Preparation",
    "PretrainModule",
    "Query",
    "ReadingOptions",
    "Request",
    "Results",
    "RetainText",
    "Rome",
    "Rule",
    "RunState",
    "SecondMoment",
    "SimNPO",
    "TargetOptions",
    "TargetScores",
    "TrainingOptions",
    "UnlearnModule",
    "UnlearnResult",
    "ZeroUnlearn",
    "ZeroUnlearnGD",
    "ZeroUnlearnSoft",
    "apply_update",
    "causal_trace",
    "check_export",
    "check_identical",
    "digest",
    "edit_layers",
    "evaluate",
    "evaluation_batches",
    "export_adapter",
    "export_model",
    "facts_by_id",
    "layer_problem",
    "lookup_keys",
    "neutral_targets",
    "original_values",
    "prepare",
    "rank_shard",
    "read_facts",
    "read_texts",
    "replacing",
    "retain_documents",
    "sample_contexts",
    "second_moments",
    "split_facts",
    "unlearn",
    "write_update",
]
