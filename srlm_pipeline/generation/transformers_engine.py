"""The reference engine: any causal LM that transformers loads, on any device.

Sampling is exact and per item: every request has its own random numbers. In bfloat16 the logits of one text
differ in the last bits between batch sizes, so bitwise equality across batch sizes is not promised (in float32
greedy output agrees up to ties); the journal makes a finished item final.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.acceleration.allocation import trim_freed_memory
from srlm_pipeline.acceleration.caches import (
    holds_every_token,
    make_cache,
    pass_through,
    prepare_attention,
    start_with,
)
from srlm_pipeline.data.chat import end_token, read_reply, render_user_turn
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.engine import Completion, FinishReason, GenerationRequest, Sampling, cut
from srlm_pipeline.generation.prefill import (
    PrefixStore,
    Run,
    last_position_only,
    prefill,
    read_on,
    runs_alike,
    worthwhile_prefix,
)
from srlm_pipeline.generation.sampling import draw_tokens
from srlm_pipeline.generation.thoughts import Thoughts
from srlm_pipeline.models.memory import sufficient_memory
from srlm_pipeline.models.saving import end_tokens
from srlm_pipeline.progress import say

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

# The sections of settings that have a batch size.
_WRITERS = "prompt_generation, candidates, judge or evaluation"
_READERS = "judge or evaluation"


class TransformersEngine:
    """A `TextEngine` over a transformers model.

    Args:
        model: Causal LM in eval mode.
        tokenizer: With a chat template and a pad token.
        digest: Fingerprint of the weights.
        batch_size: Rows that are generated together.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, digest: str, batch_size: int = 32
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._digest = digest
        self._batch_size = batch_size
        self._pad = int(tokenizer.pad_token_id or 0)
        self._thoughts = Thoughts(tokenizer)
        self._end_tokens = frozenset([end_token(tokenizer), *end_tokens(model, tokenizer)])
        prepare_attention(model)
        self._prefixes = PrefixStore(model) if holds_every_token(model) else None

    @property
    def digest(self) -> str:
        """Fingerprint of the weights and of how they think."""
        return self._digest + self._thoughts.manner

    def render(self, text: str, reply_start: str = "") -> str:
        """Return the string that the model continues in reply to one user message."""
        return render_user_turn(self._tokenizer, text, reply_start)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request; see `TextEngine.generate`.

        Raises:
            ModelError: If a prompt and its completion do not fit the model's window.
            DeviceMemoryError: If a batch does not fit the device's memory.
        """
        import torch

        encoded = [self._encode(r.prompt, self._thoughts.limit(sampling)) for r in requests]
        done: dict[int, Completion] = {}
        lower = (
            f"Lower the batch_size of the settings that it belongs to ({_WRITERS}), now {self._batch_size}, or their "
            "max_new_tokens"
        )
        with torch.inference_mode(), sufficient_memory("writing replies", lower):
            shared = self._read_common(encoded)
            for rows in self._batches(encoded):
                batch = self._generate_batch([requests[i] for i in rows], [encoded[i] for i in rows], sampling, shared)
                done.update(zip(rows, batch, strict=True))
                if on_finished:
                    on_finished(batch)
        return [done[i] for i in range(len(requests))]

    def next_token_distribution(
        self,
        prefixes: Sequence[str],
        options: Sequence[str],
        on_finished: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Return option probabilities in one forward pass per prefix; see `TextEngine.next_token_distribution`.

        Raises:
            ModelError: If an option is not a single token after the prefix.
            DeviceMemoryError: If a batch does not fit the device's memory.
        """
        import torch

        split = [option_tokens(self._tokenizer, prefix, options) for prefix in prefixes]
        sequences = [ids for ids, _ in split]
        for ids in sequences:
            self._check_fits(len(ids), 1)
        result = np.zeros((len(prefixes), len(options)))
        lower = f"Lower the batch_size of the settings that it belongs to ({_READERS}), now {self._batch_size}"
        with torch.inference_mode(), sufficient_memory("judging and reading replies", lower):
            for rows, logits in self._read(sequences):
                chosen = torch.tensor([split[i][1] for i in rows], device=logits.device)
                log_probabilities = logits.float().log_softmax(dim=-1).gather(-1, chosen)
                result[rows] = log_probabilities.exp().double().cpu().numpy()
                if on_finished:
                    on_finished(len(rows))
        return result

    def _read(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Read sequences; what all of them, or neighbours, begin with is read once.

        Yields:
            Places of the sequences of one batch, and the logits that follow each.
        """
        from transformers import DynamicCache

        runs = runs_alike(sequences, self._batch_size) if self._prefixes else []
        if not runs:
            shared = self._read_common(sequences)
            for rows in self._batches(sequences):
                cache = pass_through(self._model, shared, len(rows)) if shared else None
                yield rows, prefill(self._model, [sequences[i] for i in rows], self._pad, cache).logits
            return
        beginnings = {run: sequences[run.places.start][: run.common] for run in runs}
        shared = self._read_common(list(beginnings.values()))
        for batch in self._run_batches(runs):
            own = DynamicCache(config=self._model.config)
            if shared:
                start_with(own, shared, len(batch))
            read = prefill(self._model, [beginnings[run] for run in batch], self._pad, own)
            owners = [number for number, run in enumerate(batch) for _ in run.places]
            rows = [place for run in batch for place in run.places]
            rest = [sequences[place][run.common :] for run in batch for place in run.places]
            yield rows, read_on(self._model, read, owners, rest, self._pad, own).logits

    def _run_batches(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Alike lengths together, as many as a batch has room for; longest first, so that memory trouble shows."""
        batch: list[Run] = []
        for run in sorted(runs, key=lambda run: -run.common):
            if batch and sum(len(r.places) for r in (*batch, run)) > self._batch_size:
                yield batch
                trim_freed_memory()
                batch = []
            batch.append(run)
        if batch:
            yield batch

    def _read_common(self, sequences: Sequence[Sequence[int]]) -> DynamicCache | None:
        """Read what all sequences begin with, if that is much and the model's layers allow it."""
        common = worthwhile_prefix(sequences) if self._prefixes else []
        return self._prefixes.read(common) if self._prefixes and common else None

    def _batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Alike lengths together: less padding; equal ones side by side. Longest first, so that memory trouble shows.

        Yields:
            Places of the sequences of one batch.
        """
        order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), sequences[i]))
        for start in range(0, len(order), self._batch_size):
            yield order[start : start + self._batch_size]
            # The next batch has tensors of other sizes.
            trim_freed_memory()

    def _encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        ids = list(self._tokenizer(prompt, add_special_tokens=False).input_ids)
        if not ids:
            raise ModelError(self._digest, "an empty prompt cannot be continued; apply the chat template first")
        self._check_fits(len(ids), max_new_tokens)
        return ids

    def _check_fits(self, prompt_tokens: int, new_tokens: int) -> None:
        window = getattr(self._model.config, "max_position_embeddings", None)
        if window is not None and prompt_tokens + new_tokens > window:
            raise ModelError(
                self._digest,
                f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones exceed the model's window of {window}: "
                "shorten the prompt or lower max_new_tokens",
            )

    def _generate_batch(
        self,
        requests: list[GenerationRequest],
        encoded: list[list[int]],
        sampling: Sampling,
        shared: DynamicCache | None,
    ) -> list[Completion]:
        import torch

        # Samples of one prompt read it once.
        distinct = list(dict.fromkeys(map(tuple, encoded)))
        place = {ids: number for number, ids in enumerate(distinct)}
        cache = make_cache(self._model)
        if shared:
            start_with(cache, shared, len(distinct))
        read = prefill(self._model, distinct, self._pad, cache)
        rows = torch.tensor([place[tuple(ids)] for ids in encoded], device=read.logits.device)
        if len(distinct) < len(encoded):
            cache.batch_select_indices(rows)
        logits, mask, last_position = read.logits[rows], read.mask[rows], read.last_position[rows]

        limit = self._thoughts.limit(sampling)
        uniforms = torch.tensor(
            np.stack([np.random.default_rng(r.seed).random(limit) for r in requests]),
            dtype=torch.float32,
        ).to(logits.device)
        keep_last = last_position_only(logits.device)
        written: list[list[int]] = [[] for _ in requests]
        finished: list[Completion | None] = [None] * len(requests)
        # Which request each row of the batch belongs to; rows that have finished stay until they are worth dropping.
        owners = list(range(len(requests)))
        for step in range(limit):
            say(f"{len(requests)} being written, {step:,} of at most {limit:,} tokens each")
            drawn = draw_tokens(logits, uniforms[owners, step], sampling.temperature, sampling.top_p)
            for owner, token in zip(owners, drawn.tolist(), strict=True):
                if finished[owner] is None:
                    written[owner].append(token)
                    finished[owner] = self._finish(requests[owner], written[owner], sampling)
            running = [row for row, owner in enumerate(owners) if finished[owner] is None]
            if not running:
                break
            if len(running) <= len(owners) * _DROP_AT:
                chosen = torch.tensor(running, device=drawn.device)
                cache.batch_select_indices(chosen)
                drawn, mask, last_position = drawn[chosen], mask[chosen], last_position[chosen]
                owners = [owners[row] for row in running]
            last_position = last_position + 1
            mask = torch.cat([mask, mask.new_ones(len(owners), 1)], dim=-1)
            logits = self._model(
                input_ids=drawn[:, None],
                attention_mask=mask,
                position_ids=last_position[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep_last,
            ).logits[:, -1]
        return [completion for completion in finished if completion is not None]

    def _finish(self, request: GenerationRequest, tokens: list[int], sampling: Sampling) -> Completion | None:
        """Return the completion if its last token ended it."""
        reason: FinishReason | None = None
        body = tokens
        if tokens[-1] in self._end_tokens:
            reason, body = "stop", tokens[:-1]
        elif self._thoughts.used_up(request.prompt, tokens, sampling):
            reason = "length"
        stops = bool(sampling.stop) or sampling.stop_after is not None
        # Only the tail can have just completed a stop text; decoding it alone keeps the loop linear.
        if reason is None and not (stops and self._may_end(tokens, sampling)):
            return None
        # In a thought nothing stops.
        _, text = read_reply(self._tokenizer, request.prompt, body)
        shortened = cut(text, sampling) if stops else None
        if shortened is not None:
            return Completion(request.key, shortened, len(tokens), "stop")
        # The tail begins where it will: what is the beginning of a line there need be none.
        return Completion(request.key, text, len(tokens), reason, tuple(body)) if reason else None

    def _may_end(self, tokens: list[int], sampling: Sampling) -> bool:
        """Tell by the tail, whose first line need not begin where it seems to."""
        tail = self._decode(tokens[-_STOP_TAIL_TOKENS:])
        return any(cut(part, sampling) is not None for part in (tail, tail.partition("\n")[2]))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


_STOP_TAIL_TOKENS = 24
# Dropping finished rows copies what the others know, which takes as long as a step: worth it for an eighth of them.
_DROP_AT = 7 / 8


def option_tokens(
    tokenizer: PreTrainedTokenizerBase, prefix: str, options: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Split prefix + option into what all options share and the one token that tells them apart.

    Tokenizers differ in whether ``"Score: 3"`` ends in ``3`` or in ``" 3"``; comparing the encodings of whole
    texts is right for both.

    Args:
        tokenizer: The model's.
        prefix: Text before the option.
        options: Texts that must differ from each other in one token.

    Returns:
        The shared token ids, and one distinct token id per option.

    Raises:
        ModelError: If the options are not one distinct token each.
    """
    encoded = [list(tokenizer(prefix + option, add_special_tokens=False).input_ids) for option in options]
    shared = 0
    while all(len(ids) > shared for ids in encoded) and len({ids[shared] for ids in encoded}) == 1:
        shared += 1
    tokens = [ids[shared] if len(ids) == shared + 1 else -1 for ids in encoded]
    if -1 in tokens or len(set(tokens)) != len(tokens):
        name = getattr(tokenizer, "name_or_path", "model")
        raise ModelError(name, f"its tokenizer does not write each of {', '.join(options)} as one token")
    return encoded[0][:shared], tokens
