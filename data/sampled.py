"""Retain text that a language model writes itself: for a model whose training text is not at hand.

python -m data.sampled --model path/to/model --file outputs/corpus.txt

It wrote data/knowledge/corpus.txt.
"""

import logging
from pathlib import Path

import torch
from jsonargparse import auto_cli
from tqdm.auto import tqdm

from zu_lightning import EditableLM
from zu_lightning.cli.logs import set_up_logging
from zu_lightning.runtime.files import replacing

log = logging.getLogger(__name__)

OPENINGS = (
    "The", "In", "A", "When", "My", "One", "After", "For", "Many", "If", "She", "He", "They", "There", "This", "On",
    "It", "We", "During", "Most", "To", "Although", "By", "Some", "As", "Our", "Every", "From", "At", "How", "Since",
    "While", "Once", "Today", "People", "Early", "Another", "Because", "Before", "Few",
)  # fmt: skip
"""First words of documents; each begins equally many."""


@torch.no_grad()
def sampled_texts(lm: EditableLM, documents: int, length: int, batch_size: int = 40, seed: int = 0) -> list[str]:
    """Texts by a model, sampled at temperature 1 from the smallest set of tokens with 95% of the probability.

    Args:
        lm: The model.
        documents: Number of texts.
        length: Number of tokens of each.
        batch_size: Number of texts at once.
        seed: Seed of the sampling.

    Returns:
        The texts, each in one line.
    """
    torch.manual_seed(seed)
    texts = []
    ends = {"pad_token_id": lm.tokenizer.eos_token_id, "suppress_tokens": lm.tokenizer.all_special_ids}
    with tqdm(total=documents, desc="Texts", unit=" texts") as bar:
        for start in range(0, documents, batch_size):
            words = [OPENINGS[i % len(OPENINGS)] for i in range(start, min(documents, start + batch_size))]
            ids = torch.tensor([lm.tokenizer(word).input_ids[-1:] for word in words], device=lm.device)
            sampling = {"do_sample": True, "top_p": 0.95, "top_k": 0, "temperature": 1.0, "max_new_tokens": length}
            tokens = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **sampling, **ends)  # type: ignore[operator]
            texts += [" ".join(text.split()) for text in lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
            bar.update(len(words))
    return texts


def write(model: str, file: Path, documents: int = 400, length: int = 150, seed: int = 0) -> None:
    """Write retain text by a model into a file, one document per line.

    Args:
        model: Hub id, folder, or GGUF file of the model.
        file: Where to write.
        documents: Number of documents.
        length: Number of tokens of each.
        seed: Seed of the sampling.
    """
    texts = sampled_texts(EditableLM.from_pretrained(model), documents, length, seed=seed)
    with replacing(file) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    log.info("%d documents are in %s", len(texts), file)


if __name__ == "__main__":
    set_up_logging()
    auto_cli(write, as_positional=False)
