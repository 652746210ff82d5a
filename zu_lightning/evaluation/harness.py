"""Run downstream tasks through EleutherAI's lm-evaluation-harness (lm_eval), on a model in memory, offline."""

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from tqdm import tqdm

from zu_lightning.evaluation.ability import AbilitySet, QuestionSet, TextSet
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

MAX_LENGTH = 2048
"""Maximum number of tokens per text: the logits of all of them are held in memory."""


@dataclass(frozen=True)
class TaskScore:
    """Score of a model on a task.

    Attributes:
        value: Accuracy in percent, or the perplexity per word.
        stderr: Its standard error over questions or documents, in the same unit; NaN for a single one.
    """

    value: float
    stderr: float


def require_lm_eval() -> None:
    """Check that lm_eval, an optional extra, is installed.

    Raises:
        InputError: It is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        remedy = (
            "it measures with lm_eval, which is not installed: pip install -c constraints.txt -e '.[downstream]', or "
            "leave downstream.folder out."
        )
        raise InputError("downstream", "given", remedy)


def measure_tasks(
    lm: EditableLM, sets: Sequence[AbilitySet], batch_size: int = 8, monitor: Monitor | None = None
) -> dict[str, TaskScore]:
    """Score a model on downstream tasks.

    Args:
        lm: The model, which is left as it is.
        sets: Questions, and texts for the perplexity.
        batch_size: Number of texts per forward pass.
        monitor: Shows progress; none by default.

    Returns:
        For each task by name, its score. A prompt that is longer than the model's context, or than ``MAX_LENGTH``
        tokens, loses its beginning.

    Raises:
        InputError: lm_eval is not installed.
    """
    require_lm_eval()
    scores: dict[str, TaskScore] = {}
    with _quiet(), (monitor or Monitor()).bar("Downstream", sum(map(len, sets)), "items") as bar:
        model = _wrapped(lm, batch_size)
        for asked in sets:
            _warn_of_long_prompts(lm, asked, model.max_length)
            bar.set_postfix_str(asked.title)
            samples = _samples(model, asked)
            scores[asked.name] = (
                _accuracy([sample["acc"] for sample in samples])
                if isinstance(asked, QuestionSet)
                else _word_perplexity([sample[asked.metric] for sample in samples])
            )
            bar.update(len(asked))
    return scores


def _wrapped(lm: EditableLM, batch_size: int) -> Any:
    """Wrap the model for lm_eval."""
    from lm_eval.models.huggingface import HFLM  # an optional extra

    length = min(lm.context_length, MAX_LENGTH)
    # It may give the tokenizer another padding token.
    model = HFLM(pretrained=lm.model, tokenizer=deepcopy(lm.tokenizer), batch_size=batch_size, max_length=length)
    model._device = lm.device  # that of an offloaded model is `meta`
    return model


def _samples(model: Any, asked: AbilitySet) -> list[dict[str, Any]]:
    """Results of lm_eval for each question or document, in order.

    Its own entry points would also seed all random numbers of the run, and describe the machine.
    """
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    config = _question_config(asked) if isinstance(asked, QuestionSet) else _text_config(asked)
    task = ConfigurableTask(config={"task": asked.name, "test_split": "test", "num_fewshot": 0} | config)
    # Its standard errors fail for one item, and it has none for a perplexity.
    found = evaluate(model, {asked.name: task}, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = found["samples"][asked.name]
    return samples


def _question_config(asked: QuestionSet) -> dict[str, Any]:
    return {
        "custom_dataset": _dataset([asdict(question) for question in asked.questions]),
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["prompt"],
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["answer"],
        "metric_list": [{"metric": "acc"}],
    }


def _text_config(asked: TextSet) -> dict[str, Any]:
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    return {
        "custom_dataset": _dataset([{"page": text} for text in asked.documents]),
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": wikitext_detokenizer,
        "process_results": process_results,
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }


def _dataset(records: list[dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    from datasets import Dataset  # slow to import

    return lambda **_: {"test": Dataset.from_list(records)}


def _accuracy(right: Sequence[float]) -> TaskScore:
    """Percent of the questions that were answered correctly, with the standard error of a mean."""
    count, share = len(right), sum(right) / len(right)
    return TaskScore(100 * share, 100 * math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else math.nan)


def _word_perplexity(found: Sequence[tuple[float, int]]) -> TaskScore:
    """The perplexity per word of documents with (log-likelihood in nats, words).

    The standard error is that of a ratio of two sums over documents, to first order.
    """
    count, words = len(found), sum(length for _, length in found)
    mean = -sum(likelihood for likelihood, _ in found) / words
    perplexity = math.exp(mean) if mean < math.log(1e300) else math.inf
    if count == 1:
        return TaskScore(perplexity, math.nan)
    squares = sum((-likelihood - mean * length) ** 2 for likelihood, length in found)
    return TaskScore(perplexity, perplexity * math.sqrt(squares * count / (count - 1)) / words)


def _warn_of_long_prompts(lm: EditableLM, asked: AbilitySet, length: int) -> None:
    if isinstance(asked, QuestionSet):
        lengths = (len(lm.tokenizer(question.prompt).input_ids) for question in asked.questions)
        long = sum(count >= length for count in lengths)
        if long:
            log.warning("%s: %d of %d prompts are longer than %d tokens and lose their beginning.",
                        asked.title, long, len(asked), length)  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log lines and progress bars of lm_eval, some of which have no option."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules: list[ModuleType] = [model, task, huggingface]
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, [vars(module).get("tqdm") for module in modules]
    logger.setLevel(logging.ERROR)
    try:
        for module in modules:
            vars(module)["tqdm"] = lambda *values, **options: tqdm(*values, **options | {"disable": True})
        yield
    finally:
        logger.setLevel(level)
        for module, shown in zip(modules, bars, strict=True):
            vars(module)["tqdm"] = shown
