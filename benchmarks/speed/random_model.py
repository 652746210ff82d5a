"""Write a model of random weights, of the shape of a real one: it knows nothing, but takes as long and as much memory.

python -m benchmarks.speed.random_model --shape 3b --folder outputs/random-3b --device cuda
python train.py fit --config configs/demo.yaml --model.model_name_or_path outputs/random-3b --model.layers [16,17,18]
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.setup import new_parser
from benchmarks.speed.shapes import SHAPES, Shape
from zu_lightning import EditableLM, export_model

TOKENIZER = "data/demo/model"


def random_llama(shape: Shape, dtype: str, device: torch.device) -> PreTrainedModel:
    """A Llama of a shape, with random weights; the same in every run."""
    torch.manual_seed(0)
    with device:
        config = LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.inner, num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads, head_dim=shape.head_width,
            vocab_size=shape.vocabulary, max_position_embeddings=2048, tie_word_embeddings=True, dtype=dtype,
        )  # fmt: skip
        model: PreTrainedModel = LlamaForCausalLM(config).to(getattr(torch, dtype))
    return model


def random_lm(shape: str, dtype: str, device: str) -> EditableLM:
    """The same with the demo's tokenizer, by the name of its shape."""
    model = random_llama(SHAPES[shape], dtype, torch.device(device))
    return EditableLM(model, AutoTokenizer.from_pretrained(TOKENIZER))


def main() -> None:
    """Write the model."""
    parser = new_parser(__doc__, "device")
    parser.add_argument("--shape", default="3b", choices=SHAPES, help="of which model (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="how the weights are kept (default: %(default)s)")
    parser.add_argument("--folder", required=True, type=Path, help="where to write")
    arguments = parser.parse_args()
    arguments.folder.parent.mkdir(parents=True, exist_ok=True)
    export_model(random_lm(arguments.shape, arguments.dtype, arguments.device), arguments.folder)


if __name__ == "__main__":
    main()
