"""How much work a task is, whoever does it: floating-point operations and bytes, the yardstick beside each ratio.

Formulas, N being the elements of all matrices in the layers and V x d those of the output embedding:

* reading a token: 2 N operations, one multiplication and one addition per element; 2 V d more where the next token is
  predicted;
* a training step with adapters: the forward pass, the same again for the gradients of the activations (frozen weights
  have no gradients of their own), and 6 A per token for A adapter elements;
* a decoding step: all weights are read once for the whole batch, keys and values of all tokens so far for each row.

Attention itself is left out: at the lengths measured here it is a few per cent, so that shares come out a little low.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Work is counted in bfloat16, whatever a contender computes in: it is what the machine could do.
ELEMENT_BYTES = 2


@dataclass(frozen=True)
class Limits:
    """What a machine can do at best.

    Attributes:
        bf16_flops: Operations per second of a large matrix product in bfloat16.
        f32_flops: The same in float32.
        bandwidth: Bytes per second read and written by a large copy.
    """

    bf16_flops: float
    f32_flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float = 0.0) -> float:
        """Return the least time for so many operations and bytes, both at once."""
        return max(flops / self.bf16_flops, moved / self.bandwidth)


@dataclass(frozen=True)
class ModelSize:
    """What of a model's shape decides how much work it is.

    Attributes:
        body: Elements of all matrices in the layers (N).
        head: Elements of the output embedding (V x d).
        cached: Elements of keys and values that one token leaves behind.
        linear: Inputs and outputs of all matrices in the layers; adapters of rank r have r times as many elements.
    """

    body: int
    head: int
    cached: int
    linear: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSize:
        """Measure a causal language model."""
        from torch import nn

        head = model.get_output_embeddings()
        matrices = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
        config = model.config
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(
            body=sum(m.weight.numel() for m in matrices),
            head=head.weight.numel(),
            cached=2 * config.num_hidden_layers * key_heads * head_size,
            linear=sum(m.in_features + m.out_features for m in matrices),
        )

    def forward_flops(self, tokens: int, predictions: int) -> float:
        """Return the operations of reading tokens and predicting after some of them."""
        return 2.0 * (self.body * tokens + self.head * predictions)

    def training_flops(self, tokens: int, predictions: int, rank: int) -> float:
        """Return the operations of a forward and backward pass with adapters of a rank on all matrices."""
        return 2 * self.forward_flops(tokens, predictions) + 6.0 * rank * self.linear * tokens

    def decoding_bytes(self, rows: Iterable[tuple[int, int]], batch_size: int) -> float:
        """Return the bytes read while writing.

        Args:
            rows: Tokens read and tokens written of each row.
            batch_size: Rows that share one reading of the weights.
        """
        rows = list(rows)
        longest = max((new for _, new in rows), default=0)
        weights = (self.body + self.head) * longest * -(-len(rows) // batch_size)
        cache = sum(self.cached * (new * prompt + new * (new - 1) // 2) for prompt, new in rows)
        return float(ELEMENT_BYTES * (weights + cache))

    def writing_seconds(
        self, rows: Iterable[tuple[int, int]], prompt_tokens: int, batch_size: int, on: Limits
    ) -> float:
        """Return the least time for reading prompts and writing replies.

        Args:
            rows: Tokens known before and tokens written of each row.
            prompt_tokens: Tokens that have to be read; fewer than the rows' sum where rows begin alike.
            batch_size: Rows that are written together.
            on: The machine.
        """
        rows = list(rows)
        written = sum(new for _, new in rows)
        reading = on.seconds(self.forward_flops(prompt_tokens, 0))
        return reading + on.seconds(self.forward_flops(written, written), self.decoding_bytes(rows, batch_size))
