"""List the facts that a model answers.

python train.py known --model data/demo/model --path data/demo/facts.jsonl --out known.tsv
"""

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, auto_cli

from zu_lightning.evaluation.known import answered_facts, check_at_least, measure_known
from zu_lightning.facts.reading import read_facts
from zu_lightning.lm.editable import EditableLM
from zu_lightning.modules.outputs import check_writable
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import replacing
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

HEADER = "# id\tprobability\tmargin"
"""First line of the file."""


def write_known(
    model: str, path: str, out: str, at_least: float = 0.0, chat: bool = False, dtype: str = "auto",
    cache: str | None = None,
) -> None:  # fmt: skip
    """Write the facts that a model answers into a file that data.ids_file takes: id, probability, and margin in nats.

    Args:
        model: Hub id or directory of the model.
        path: Facts, in the forms of data.path.
        out: The file: a line for each fact that greedy decoding answers, with tabs between its columns.
        at_least: Minimum probability of an answer, 0..1.
        chat: Whether prompts are given to the model as a user's message, through its chat template.
        dtype: How the weights are kept: auto, float32, bfloat16, or float16.
        cache: Folder in which runs share results, such as the data.cache of runs on these facts.

    Raises:
        InputError: An option is wrong, the model or the facts cannot be read, or the file cannot be written.
    """
    check_at_least(at_least)
    facts = [fact.as_chat() if chat else fact for fact in read_facts(path)]
    check_writable(str(Path(out).parent), "out")
    if Path(out).is_dir():
        raise InputError("out", out, "it is a folder: name a file.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = EditableLM.from_pretrained(model, dtype=dtype).to(device)
    folder = None if cache is None else Path(cache)
    certainties = measure_known(lm, facts, cache=folder, monitor=Monitor(progress=True))
    answered = [(fact.id, certainties[fact.id]) for fact in answered_facts(facts, certainties, at_least)]
    lines = [HEADER, *(f"{name}\t{one.probability:.6f}\t{one.margin:.4f}" for name, one in answered)]
    with replacing(Path(out)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    log.info("their ids are in %s, for data.ids_file", out)


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run the command.

    Args:
        arguments: The options.
        parser_class: Parser that reports wrong arguments.

    Raises:
        InputError: An option is wrong, the model or the facts cannot be read, or the file cannot be written.
    """
    prog, parameters = "python train.py known", inspect.signature(write_known).parameters
    try:
        auto_cli(write_known, args=list(arguments), as_positional=False, prog=prog, parser_class=parser_class)
    except InputError as error:
        name = "model" if error.parameter == "model_name_or_path" else error.parameter
        if name in parameters and not error.where:
            raise InputError(f"--{name}", error.value, error.remedy) from error
        raise
