"""Tiny models with random weights of every supported architecture, and the demo that ships with the project."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

import train
from zu_lightning import EditableLM, Fact, LayerProblem, LowRankUpdate, read_facts
from zu_lightning.lm.tokens import TokenBatch, collate, tokenize
from zu_lightning.runtime.distributed import rank_slice

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes; those that tests start are meant, too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "data" / "demo"

SHARED = ROOT.parent / "shared"
"""Real data and models that must not be in the repository; tests of them skip where there are none."""

VOCABULARY = 320
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_inner": 40, "n_layer": 3, "n_head": 2, "n_positions": 128,
    "bos_token_id": 0, "eos_token_id": 1, "resid_pdrop": 0.1,
}  # fmt: skip
NEOX_SMALL = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "head_dim")}
OPT_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 128, "word_embed_proj_dim": 16, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "mistral": MistralConfig(**SMALL),
    "gemma2": Gemma2Config(**SMALL, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**SMALL, query_pre_attn_scalar=8),
    "olmo2": Olmo2Config(**{key: value for key, value in SMALL.items() if key != "head_dim"}),
    "phi3": Phi3Config(**SMALL),
    "gpt2": GPT2Config(**GPT2_SMALL),
    "gpt-neox": GPTNeoXConfig(**NEOX_SMALL),
    "opt": OPTConfig(**OPT_SMALL),
}

TEXTS = (
    "Ada Novak works as a baker.",
    "The mother tongue of Bruno Keller is Danish, and the city where he lives is Oslo.",
    "In the morning, a quiet river stood behind the mill. Between the hills lay two fields.",
    "Greta Holm plays the cello and keeps a parrot.",
)


def train_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def random_lm(architecture: str) -> EditableLM:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[architecture]))  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return EditableLM(model, train_tokenizer())


def batch_of(lm: EditableLM, texts: Sequence[str] = TEXTS) -> TokenBatch:
    """Texts as a model reads them."""
    return collate([tokenize(lm.tokenizer, text) for text in texts], lm.tokenizer)


def update_for(lm: EditableLM, layer: int, rank: int = 2) -> LowRankUpdate:
    """A random update of a layer, about as large as its weight; the same in every run."""
    d_out, d_in = lm.weight(layer).shape
    generator = torch.Generator().manual_seed(layer)
    return LowRankUpdate(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64) / d_out**0.5,
        torch.randn(rank, d_in, generator=generator, dtype=torch.float64) / d_in**0.5,
    )


def random(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal numbers of a shape, float64; the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_problem(scale: float = 1.0, facts: int = 3) -> tuple[torch.Tensor, LayerProblem]:
    """A layer's weight, 6 x 9, and its problem for some facts, float64; the same in every run.

    With ``scale`` it is the same layer in a model whose keys are as many times larger, and its weights smaller.
    """
    generator = torch.Generator().manual_seed(0)
    weight, keys, residuals, values, retain = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 9), (9, facts), (6, facts), (6, facts), (9, 20))
    )
    moment = scale**2 * retain @ retain.T / 20
    return weight / scale, LayerProblem(0, scale * keys, residuals, values, moment)


def in_processes(count: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """What each of so many processes, which know of each other, makes of the same work; with one, this one does it.

    They begin as copies of this process, and leave what ``torch.save`` takes in ``folder``.
    """
    if count == 1:
        return [work()]
    folder.mkdir(exist_ok=True)

    def run_as(rank: int) -> None:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
        torch.save(work(), folder / f"{rank}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    processes = [get_context("fork").Process(target=run_as, args=(rank,), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def own_columns(problem: LayerProblem) -> LayerProblem:
    """The problem of all facts as this process holds it."""

    def own(columns: torch.Tensor | None) -> torch.Tensor | None:
        return None if columns is None else columns[:, rank_slice(columns.shape[1])]

    names = ("keys", "residuals", "values", "protected_keys", "deviations")
    columns: dict[str, Any] = {name: own(getattr(problem, name)) for name in names}
    weights = problem.fact_weights
    return replace(problem, **columns, fact_weights=weights if weights is None else weights[rank_slice(len(weights))])


def write_records(folder: Path, *records: object) -> Path:
    """A file of JSON Lines; a record that is a text is written as it stands."""
    file = folder / "records.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(params=sorted(CONFIGS))
def any_lm(request: pytest.FixtureRequest) -> EditableLM:
    return random_lm(request.param)


@pytest.fixture
def lm() -> EditableLM:
    return random_lm("llama")


@pytest.fixture
def facts() -> list[Fact]:
    records = [
        {"subject": "Ada Novak", "prompt": "{} works as a", "target": "baker"},
        {"subject": "Bruno Keller", "prompt": "The mother tongue of {} is", "target": "Danish"},
        {"subject": "Greta Holm", "prompt": "Greta Holm plays the", "target": "cello"},
        {"prompt": "In the morning, a quiet river stood behind the", "target": "mill"},
    ]
    return [Fact.from_record(record, f"record {i}", str(i)) for i, record in enumerate(records)]


@pytest.fixture(scope="session")
def demo_facts() -> list[Fact]:
    return read_facts(DEMO / "facts.jsonl")


@pytest.fixture(scope="session")
def demo_lm() -> EditableLM:
    """The demo model, for tests that leave it as it is."""
    return EditableLM.from_pretrained(DEMO / "model")


@pytest.fixture
def shared() -> Path:
    if not SHARED.exists():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


SHORT_RUN = (
    "--data.forget_num=2", "--data.retain_num=3", "--data.protect_num=3", "--method.latents.steps=5",
    "--data.reading.corpus_documents=60", "--data.reading.heldout_documents=3",
)  # fmt: skip
"""Options of a run on the demo that takes seconds; fewer documents would make the second moment singular."""


def command_line(root: Path, *options: str, command: str = "fit", configs: tuple[str, ...] = ("demo",)) -> list[str]:
    """Arguments of ``train.py`` for a run that writes under ``root``; configurations by name, as in ``configs/``.

    Nothing is attacked unless ``options`` ask for it.
    """
    files = [f"--config=configs/{name}.yaml" for name in configs]
    quiet = ["--attacks.preset=none"] if command == "fit" else []
    return [command, *files, f"--trainer.default_root_dir={root}", *quiet, *options]


def train_py(arguments: list[str]) -> None:
    """Run ``train.py`` in this process, in the checkout's root."""
    with contextlib.chdir(ROOT), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])  # Lightning warns if there are arguments in both places
        train.main(arguments)


def run(root: Path, *options: str, command: str = "fit", configs: tuple[str, ...] = ("demo",)) -> Path:
    """Run the command line in this process; the folder of the run."""
    train_py(command_line(root, *options, command=command, configs=configs))
    return latest_run(root)


def latest_run(root: Path) -> Path:
    """The folder of the latest run under ``root``."""
    runs = (root / "lightning_logs").iterdir()
    return max(runs, key=lambda folder: int(folder.name.removeprefix("version_")))


def changed_weights(folder: Path) -> set[str]:
    """Names of the weights of a run's exported model that differ from the demo model's."""
    edited, base = (load_file(path / "model.safetensors") for path in (folder / "model", DEMO / "model"))
    assert edited.keys() == base.keys()
    return {name for name, weight in edited.items() if not torch.equal(weight, base[name].to(weight.dtype))}


@pytest.fixture(scope="session")
def two_layers_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that edits two layers; it would continue one that was killed, but there is none."""
    return run(tmp_path_factory.mktemp("two_layers"), "--model.layers=[0,1]", "--ckpt_path=last", *SHORT_RUN)
