"""Sizes of the models that are estimated, or that are initialized at random to be timed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    Attributes:
        name: What to call the model.
        width: Width of the residual stream.
        inner: Width of the MLP's hidden layer.
        depth: Number of layers.
        heads: Number of attention heads.
        key_value_heads: Number of heads of the attention's keys and values.
        head_width: Width of a head.
        vocabulary: Number of tokens in the vocabulary.
        layers: Layers that our configurations edit.
    """

    name: str
    width: int
    inner: int
    depth: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    layers: tuple[int, ...]

    @property
    def layer_parameters(self) -> int:
        """Number of parameters of one layer."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_value_heads)
        return attention + 3 * self.width * self.inner

    @property
    def head_parameters(self) -> int:
        """Number of parameters of the language model's head."""
        return self.width * self.vocabulary

    def above(self, layer: int) -> int:
        """Number of layers above one."""
        return self.depth - 1 - layer


SHAPES = {
    "100m": Shape("100 M parameters", 768, 2048, 12, 12, 4, 64, 32_000, (5, 6, 7)),
    "3b": Shape("Llama-3.2-3B", 3072, 8192, 28, 24, 8, 128, 128_256, (16, 17, 18)),
    "4b": Shape("Qwen3-4B", 2560, 9728, 36, 32, 8, 128, 151_936, (9, 10, 11)),
    "8b": Shape("Llama-3.1-8B", 4096, 14_336, 32, 32, 8, 128, 128_256, (19, 20, 21)),
}
