"""Public names, each imported from its module when it is first used."""

from .editing.closed_forms import (
    AlphaEdit as AlphaEdit,
)
from .editing.closed_forms import (
    Erase as Erase,
)
from .editing.closed_forms import (
    Memit as Memit,
)
from .editing.closed_forms import (
    Rome as Rome,
)
from .editing.closed_forms import (
    ZeroUnlearn as ZeroUnlearn,
)
from .editing.closed_forms import (
    ZeroUnlearnGD as ZeroUnlearnGD,
)
from .editing.closed_forms import (
    ZeroUnlearnSoft as ZeroUnlearnSoft,
)
from .editing.editor import (
    LayerEdit as LayerEdit,
)
from .editing.editor import (
    LayerEditor as LayerEditor,
)
from .editing.editor import (
    LayerScores as LayerScores,
)
from .editing.editor import (
    UnlearnResult as UnlearnResult,
)
from .editing.editor import (
    unlearn as unlearn,
)
from .editing.editor import (
    write_update as write_update,
)
from .editing.keys import lookup_keys as lookup_keys
from .editing.latents import (
    NeutralTargets as NeutralTargets,
)
from .editing.latents import (
    neutral_targets as neutral_targets,
)
from .editing.latents import (
    original_values as original_values,
)
from .editing.layer_problem import LayerProblem as LayerProblem
from .editing.method import (
    EditingMethod as EditingMethod,
)
from .editing.method import (
    LatentOptions as LatentOptions,
)
from .editing.method import (
    Method as Method,
)
from .editing.method import (
    ReleaseProtocol as ReleaseProtocol,
)
from .editing.moments import SecondMoment as SecondMoment
from .editing.moments import second_moments as second_moments
from .editing.preparation import Preparation as Preparation
from .editing.preparation import layer_problem as layer_problem
from .editing.preparation import prepare as prepare
from .editing.request import Request as Request
from .evaluation.scores import (
    EvaluationBatch as EvaluationBatch,
)
from .evaluation.scores import (
    evaluate as evaluate,
)
from .evaluation.scores import (
    evaluation_batches as evaluation_batches,
)
from .facts.fact import Fact as Fact
from .facts.fact import FactToken as FactToken
from .facts.fact import Query as Query
from .facts.reading import facts_by_id as facts_by_id
from .facts.reading import read_facts as read_facts
from .facts.splits import split_facts as split_facts
from .facts.texts import (
    ReadingOptions as ReadingOptions,
)
from .facts.texts import (
    RetainText as RetainText,
)
from .facts.texts import (
    read_texts as read_texts,
)
from .facts.texts import (
    retain_documents as retain_documents,
)
from .gradient.method import (
    NPO as NPO,
)
from .gradient.method import (
    RMU as RMU,
)
from .gradient.method import (
    FineTuning as FineTuning,
)
from .gradient.method import (
    GradientAscent as GradientAscent,
)
from .gradient.method import (
    GradientDifference as GradientDifference,
)
from .gradient.method import (
    GradientMethod as GradientMethod,
)
from .gradient.method import (
    LoraOptions as LoraOptions,
)
from .gradient.method import (
    SimNPO as SimNPO,
)
from .gradient.method import (
    TrainingOptions as TrainingOptions,
)
from .lm.contexts import sample_contexts as sample_contexts
from .lm.editable import EditableLM as EditableLM
from .lm.export import (
    ExportCheck as ExportCheck,
)
from .lm.export import (
    check_export as check_export,
)
from .lm.export import (
    export_adapter as export_adapter,
)
from .lm.export import (
    export_model as export_model,
)
from .lm.updates import EditReport as EditReport
from .lm.updates import apply_update as apply_update
from .modules.base import UnlearnModule as UnlearnModule
from .modules.editing import EditingModule as EditingModule
from .modules.evaluation import EvaluationModule as EvaluationModule
from .modules.gradient import GradientModule as GradientModule
from .modules.pretrain import PretrainModule as PretrainModule
from .modules.state import EditKey as EditKey
from .modules.state import RunState as RunState
from .report.results import Results as Results
from .report.results import TargetScores as TargetScores
from .runtime.distributed import check_identical as check_identical
from .runtime.distributed import rank_shard as rank_shard
from .runtime.errors import InputError as InputError
from .runtime.files import digest as digest
from .runtime.files import replacing as replacing
from .runtime.timing import Monitor as Monitor
from .solvers import LowRankUpdate as LowRankUpdate
from .tracing.layer_trace import CausalTrace as CausalTrace
from .tracing.layer_trace import LayerTrace as LayerTrace
from .tracing.layer_trace import causal_trace as causal_trace

__version__: str
