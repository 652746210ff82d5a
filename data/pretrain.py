"""Text of the demo world in packed token blocks, to train the demo model from scratch."""

from collections.abc import Iterator
from itertools import islice

import torch
from lightning import LightningDataModule
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast

from data.world import World
from zu_lightning import Fact, split_facts

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts a beginning-of-text token before every text.

    Args:
        texts: The text to learn merges from.
        vocab_size: Size of the vocabulary, bytes and three special tokens included.

    Returns:
        A fast tokenizer with beginning-of-text, end-of-text, and padding tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
    )


class PackedWorldText(IterableDataset[Tensor]):
    """``blocks`` blocks of ``block_size`` token ids; each block starts with a document's beginning."""

    def __init__(
        self, world: World, tokenizer: PreTrainedTokenizerFast, *, block_size: int, blocks: int, seed: int
    ) -> None:
        super().__init__()
        self.world, self.tokenizer = world, tokenizer
        self.block_size, self.blocks, self.seed = block_size, blocks, seed

    def __len__(self) -> int:
        return self.blocks

    def __iter__(self) -> Iterator[Tensor]:
        documents = self.world.documents(self.seed)
        for _ in range(self.blocks):
            ids: list[int] = []
            while len(ids) < self.block_size:
                ids += [*self.tokenizer.encode(next(documents)), self.tokenizer.eos_token_id]
            yield torch.tensor(ids[: self.block_size])


class WorldTextDataModule(LightningDataModule):
    """Training and validation text of the demo world, and the tokenizer made for it.

    Args:
        vocab_size: Size of the tokenizer's vocabulary.
        block_size: Number of tokens per training sequence.
        batch_size: Number of sequences per batch.
        steps_per_epoch: Number of batches per epoch; no text is seen twice.
        seed: Seed of the text (the world itself is always the same).
        withheld_num: Number of facts that the text never states, for a model that never knew them: those that
            ``UnlearnDataModule`` draws to forget with the same number and seed.
        withheld_seed: Seed of that draw, or of several: one model is then gold for all of them.
        withheld_ids: Ids of the facts that the text never states, in place of a draw.
    """

    def __init__(
        self,
        vocab_size: int = 1408,
        block_size: int = 128,
        batch_size: int = 32,
        steps_per_epoch: int = 500,
        seed: int = 10,
        withheld_num: int = 0,
        withheld_seed: int | list[int] = 0,
        withheld_ids: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.block_size, self.batch_size = block_size, batch_size
        self.steps_per_epoch, self.seed = steps_per_epoch, seed
        # The same tokenizer with and without facts, so that their models can be compared token by token.
        seeds = [withheld_seed] if isinstance(withheld_seed, int) else withheld_seed
        wanted = withheld_num if withheld_ids is None else withheld_ids
        self.world = World(withheld={name for one in seeds for name in _withheld(wanted, one)})
        self.tokenizer = train_tokenizer(islice(World().documents(seed=4), 20_000), vocab_size)

    def train_dataloader(self) -> DataLoader[Tensor]:
        """One epoch of fresh text: the seed changes with the epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader(seed=self.seed + 1000 * (epoch + 1), batches=self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """A few batches of text that training never sees."""
        return self._loader(seed=self.seed + 1, batches=10)

    def _loader(self, seed: int, batches: int) -> DataLoader[Tensor]:
        blocks = batches * self.batch_size
        text = PackedWorldText(self.world, self.tokenizer, block_size=self.block_size, blocks=blocks, seed=seed)
        return DataLoader(text, batch_size=self.batch_size)


def _withheld(wanted: int | list[str], seed: int) -> list[str]:
    """Ids of the facts of the demo that are asked for by their number or their ids."""
    if not wanted:
        return []
    facts = [Fact.from_record(record, "data/world.py", "") for record in World().facts()]
    return [fact.id for fact in split_facts(facts, wanted, seed=seed)[0]]
