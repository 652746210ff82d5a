"""Public names, each imported from its module when it is first used."""

from .editing.closed_forms import (
    AlphaEdit as AlphaEdit,
    Erase as Erase,
    Memit as Memit,
    Rome as Rome,
    ZeroUnlearn as ZeroUnlearn,
    ZeroUnlearnGD as ZeroUnlearnGD,
    ZeroUnlearnSoft as ZeroUnlearnSoft,
)
from .editing.editor import (
    LayerEdit as LayerEdit,
    LayerEditor as LayerEditor,
    LayerScores as LayerScores,
    UnlearnResult as UnlearnResult,
    unlearn as unlearn,
    write_update as write_update,
)
from .editing.keys import lookup_keys as lookup_keys
from .editing.latents import (
    NeutralTargets as NeutralTargets,
    neutral_targets as neutral_targets,
    original_values as original_values,
)
from .editing.layer_problem import LayerProblem as LayerProblem
from .editing.method import (
    EditingMethod as EditingMethod,
    LatentOptions as LatentOptions,
    Method as Method,
    ReleaseProtocol as ReleaseProtocol,
)
from .editing.moments import SecondMoment as SecondMoment, second_moments as second_moments
from .editing.preparation import Preparation as Preparation, layer_problem as layer_problem, prepare as prepare
from .editing.request import Request as Request
from .evaluation.known import known_facts as known_facts
from .evaluation.scores import (
    EvaluationBatch as EvaluationBatch,
    evaluate as evaluate,
    evaluate_queries as evaluate_queries,
    evaluation_batches as evaluation_batches,
)
from .facts.fact import Fact as Fact, FactToken as FactToken, Query as Query
from .facts.reading import facts_by_id as facts_by_id, read_facts as read_facts
from .facts.splits import split_facts as split_facts
from .facts.texts import (
    ReadingOptions as ReadingOptions,
    RetainText as RetainText,
    read_texts as read_texts,
    retain_documents as retain_documents,
)
from .gradient.method import (
    NPO as NPO,
    RMU as RMU,
    FineTuning as FineTuning,
    GradientAscent as GradientAscent,
    GradientDifference as GradientDifference,
    GradientMethod as GradientMethod,
    LoraOptions as LoraOptions,
    SimNPO as SimNPO,
    TrainingOptions as TrainingOptions,
)
from .lm.contexts import sample_contexts as sample_contexts
from .lm.editable import EditableLM as EditableLM
from .lm.export import (
    ExportCheck as ExportCheck,
    check_export as check_export,
    export_adapter as export_adapter,
    export_model as export_model,
)
from .lm.updates import EditReport as EditReport, apply_update as apply_update
from .modules.base import UnlearnModule as UnlearnModule
from .modules.editing import EditingModule as EditingModule
from .modules.evaluation import EvaluationModule as EvaluationModule
from .modules.gradient import GradientModule as GradientModule
from .modules.pretrain import PretrainModule as PretrainModule
from .modules.state import EditKey as EditKey, RunState as RunState
from .modules.teach import TeachBatch as TeachBatch, TeachModule as TeachModule
from .report.results import Results as Results, TargetScores as TargetScores
from .runtime.distributed import check_identical as check_identical, rank_shard as rank_shard
from .runtime.errors import InputError as InputError
from .runtime.files import digest as digest, replacing as replacing
from .runtime.timing import Monitor as Monitor
from .solvers import LowRankUpdate as LowRankUpdate
from .tracing.layer_trace import CausalTrace as CausalTrace, LayerTrace as LayerTrace, causal_trace as causal_trace

__version__: str
