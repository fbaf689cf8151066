"""Reading many texts at once, what they begin with in common being computed once.

Judging prompts begin alike: the rubric always. Samples of one prompt, and judgements of one reply, are alike to the
last token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

# A shorter common beginning is not worth a forward pass of its own.
_WORTHWHILE = 16
# So many tokens of padding cost as much as a further pass through all layers, forwards and backwards.
_WORTH_A_PASS = 512
# Reading beginnings first takes a pass more, and a copy of what was read for each row: worth it for half of the tokens.
_WORTH_TWO_PASSES = 1 / 2


class PrefixStore:
    """Keys and values of the latest common beginning, computed once however many batches start with it.

    Args:
        model: Causal LM all of whose layers keep all tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._cache: DynamicCache | None = None

    def read(self, tokens: Sequence[int]) -> DynamicCache:
        """Return the cache of one row that has read these tokens; what the last call has in common is kept."""
        import torch
        from transformers import DynamicCache

        kept = common_length([self._tokens, tokens])
        if self._cache is None or kept == 0:
            self._cache, kept = DynamicCache(config=self._model.config), 0
        elif kept < len(self._tokens):
            self._cache.crop(kept - len(self._tokens))
        if kept < len(tokens):
            device = self._model.device
            self._model(
                input_ids=torch.tensor([list(tokens[kept:])], device=device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=last_position_only(device),
            )
        self._tokens = list(tokens)
        return self._cache


@dataclass
class Prefilled:
    """What a model knows after reading.

    Attributes:
        logits: That follow each sequence, shape (sequences, vocabulary), in the model's type.
        mask: Of the columns read so far, shape (sequences, columns).
        last_position: Of each sequence's last token, shape (sequences,).
    """

    logits: torch.Tensor
    mask: torch.Tensor
    last_position: torch.Tensor


def prefill(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    cache: DynamicCache | None,
) -> Prefilled:
    """Read sequences. Gradients flow, where they are enabled.

    Args:
        model: Causal LM.
        sequences: Token ids; none empty.
        pad_token_id: For left padding.
        cache: Holds what all sequences begin with, shorter than any of them, or nothing; None where there is no such
            beginning and nothing will be continued.
    """
    import torch

    n, device = len(sequences), model.device
    shared = 0 if cache is None else cache.get_seq_length()
    ids, mask, positions = left_pad([sequence[shared:] for sequence in sequences], pad_token_id, device)
    mask, positions = torch.cat([mask.new_ones(n, shared), mask], dim=-1), positions + shared
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=last_position_only(device),
    ).logits[:, -1]
    return Prefilled(logits, mask, positions[:, -1])


def read_on(
    model: PreTrainedModel,
    read: Prefilled,
    rows: Sequence[int],
    sequences: Sequence[Sequence[int]],
    pad_token_id: int,
    cache: DynamicCache,
) -> Prefilled:
    """Read what follows beginnings that have been read, several times after each.

    Args:
        model: Causal LM.
        read: What reading the beginnings gave.
        rows: For each sequence the row of its beginning.
        sequences: Token ids; none empty.
        pad_token_id: For left padding.
        cache: Of the beginnings; afterwards of the sequences.
    """
    import torch

    chosen = torch.tensor(rows, device=read.mask.device)
    cache.batch_select_indices(chosen)
    ids, mask, positions = left_pad(sequences, pad_token_id, model.device)
    mask = torch.cat([read.mask[chosen], mask], dim=-1)
    positions = read.last_position[chosen][:, None] + 1 + positions
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last_position_only(model.device),
    ).logits[:, -1]
    return Prefilled(logits, mask, positions[:, -1])


def last_token_logits(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], pad_token_id: int, share_prefix: bool = True
) -> torch.Tensor:
    """Return the logits that follow each sequence. Gradients flow, where they are enabled, through the beginning too.

    Args:
        model: Causal LM.
        sequences: Token ids; none empty.
        pad_token_id: For left padding.
        share_prefix: Whether to compute a common beginning once; gradient checkpointing, which recomputes without a
            cache, does not allow it.

    Returns:
        Shape (len(sequences), vocabulary), in the model's type.
    """
    import torch
    from transformers import DynamicCache

    from srlm_pipeline.acceleration.caches import start_with

    shared = worthwhile_prefix(sequences) if share_prefix else []
    beginning = PrefixStore(model).read(shared) if shared else None
    batches = alike([len(sequence) - len(shared) for sequence in sequences])
    logits = []
    for batch in batches:
        cache = None
        if beginning is not None:
            # Layers with a sliding window know best how to go on from a beginning.
            cache = DynamicCache(config=model.config)
            start_with(cache, beginning, len(batch))
        logits.append(prefill(model, [sequences[place] for place in batch], pad_token_id, cache).logits)
    order = torch.tensor([place for batch in batches for place in batch], device=model.device)
    return torch.cat(logits)[order.argsort()]


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Put texts of alike lengths together, where that saves more padding than it costs in passes.

    Args:
        lengths: Of texts.

    Returns:
        Places of the texts of each batch, longest first.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batches: list[list[int]] = []
    for number, place in enumerate(order):
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or (longest - lengths[place]) * (len(order) - number) >= _WORTH_A_PASS:
            batches.append([place])
        else:
            batches[-1].append(place)
    return batches


@dataclass(frozen=True)
class Run:
    """Neighbouring sequences that begin alike.

    Attributes:
        places: Of the sequences.
        common: How many tokens all of them begin with, at least one token of each being left over.
    """

    places: range
    common: int


def runs_alike(sequences: Sequence[Sequence[int]], longest: int) -> list[Run]:
    """Divide sequences into runs whose beginnings are best read once; none if that does not save half of the tokens.

    Of all ways to divide them, in their order, the one that reads the fewest tokens.

    Args:
        sequences: Token ids; none empty.
        longest: Most sequences of a run.
    """
    if len(sequences) < 2 or min(map(len, sequences)) < 2:
        return []
    everywhere = len(worthwhile_prefix(sequences))
    alike = [common_length(pair) for pair in itertools.pairwise(sequences)]
    # Of the first n sequences: the fewest tokens, and the last run.
    best: list[tuple[int, Run | None]] = [(0, None)]
    for end in range(1, len(sequences) + 1):
        common = len(sequences[end - 1]) - 1
        lengths = 0
        ways: list[tuple[int, Run]] = []
        for start in range(end - 1, max(-1, end - 1 - longest), -1):
            if start < end - 1:
                common = min(common, alike[start], len(sequences[start]) - 1)
            lengths += len(sequences[start])
            tokens = common - everywhere + lengths - common * (end - start)
            ways.append((best[start][0] + tokens, Run(range(start, end), common)))
        best.append(min(ways, key=lambda way: way[0]))
    together = sum(len(sequence) - everywhere for sequence in sequences)
    if best[-1][0] > together * _WORTH_TWO_PASSES:
        return []
    runs: list[Run] = []
    run = best[-1][1]
    while run is not None:
        runs.append(run)
        run = best[run.places.start][1]
    return runs[::-1]


def worthwhile_prefix(sequences: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return what all sequences begin with, at least one token of each being left over; empty if that is too little."""
    if len(sequences) < 2:
        return []
    shared = min(common_length(sequences), min(map(len, sequences)) - 1)
    return sequences[0][:shared] if shared >= _WORTHWHILE else []


def common_length(sequences: Sequence[Sequence[object]]) -> int:
    """Return how many tokens, or characters, all of them begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def left_pad(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, attention mask and position ids, each of shape (rows, longest)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def last_position_only(device: torch.device) -> torch.Tensor:
    """Return a `logits_to_keep` for the last position alone.

    As an integer, transformers takes a strided slice, and the output projection then copies its whole weight
    matrix once per row; an index makes the slice contiguous.
    """
    import torch

    return torch.tensor([-1], device=device)
