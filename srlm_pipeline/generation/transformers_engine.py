"""The reference engine: any causal LM that transformers loads, on any device.

Sampling is exact and per item: every request has its own random numbers. In bfloat16 the logits of one text
differ in the last bits between batch sizes, so bitwise equality across batch sizes is not promised (in float32
greedy output agrees up to ties); the journal makes a finished item final.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.data.chat import render_user_turn
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.engine import Completion, FinishReason, GenerationRequest, Sampling
from srlm_pipeline.generation.last_token import last_position_only, last_token_logits, left_pad
from srlm_pipeline.generation.sampling import draw_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        self._end_tokens = _end_tokens(model, tokenizer)

    @property
    def digest(self) -> str:
        """Fingerprint of the weights."""
        return self._digest

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
        """
        encoded = [self._encode(r.prompt, sampling.max_new_tokens) for r in requests]
        # Alike lengths together: less padding. Longest first, so that memory trouble shows at once.
        order = sorted(range(len(requests)), key=lambda i: -len(encoded[i]))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            batch = self._generate_batch([requests[i] for i in rows], [encoded[i] for i in rows], sampling)
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
        """
        import torch

        split = [option_tokens(self._tokenizer, prefix, options) for prefix in prefixes]
        for ids, _ in split:
            self._check_fits(len(ids), 1)
        result = np.zeros((len(prefixes), len(options)))
        order = sorted(range(len(prefixes)), key=lambda i: -len(split[i][0]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            with torch.inference_mode():
                logits = last_token_logits(self._model, [split[i][0] for i in rows], self._pad)
                chosen = torch.tensor([split[i][1] for i in rows], device=logits.device)
                log_probabilities = logits.float().log_softmax(dim=-1).gather(-1, chosen)
            result[rows] = log_probabilities.exp().double().cpu().numpy()
            if on_finished:
                on_finished(len(rows))
        return result

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
        self, requests: list[GenerationRequest], encoded: list[list[int]], sampling: Sampling
    ) -> list[Completion]:
        import torch
        from transformers import DynamicCache

        n = len(requests)
        keep_last = last_position_only(self._model.device)
        step_limit = sampling.max_new_tokens
        uniforms = torch.tensor(
            np.stack([np.random.default_rng(r.seed).random(step_limit) for r in requests]), dtype=torch.float32
        ).to(self._model.device)
        ids, mask, positions = left_pad(encoded, self._pad, self._model.device)
        cache = DynamicCache(config=self._model.config)
        written: list[list[int]] = [[] for _ in range(n)]
        finished: list[Completion | None] = [None] * n
        alive = list(range(n))
        last_position = positions[:, -1]
        with torch.inference_mode():
            for step in range(step_limit):
                logits = self._model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=keep_last,
                ).logits[:, -1]
                drawn = draw_tokens(logits, uniforms[alive, step], sampling.temperature, sampling.top_p)
                kept: list[int] = []
                for row, token in enumerate(drawn.tolist()):
                    item = alive[row]
                    written[item].append(token)
                    finished[item] = self._finish(requests[item], written[item], sampling)
                    if finished[item] is None:
                        kept.append(row)
                if not kept:
                    break
                if len(kept) < len(alive):
                    # Finished rows leave the batch, so that nobody pays for them any more.
                    chosen = torch.tensor(kept, device=ids.device)
                    cache.batch_select_indices(chosen)
                    drawn, mask, last_position = drawn[chosen], mask[chosen], last_position[chosen]
                    alive = [alive[row] for row in kept]
                last_position = last_position + 1
                ids, positions = drawn[:, None], last_position[:, None]
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
        return [completion for completion in finished if completion is not None]

    def _finish(self, request: GenerationRequest, tokens: list[int], sampling: Sampling) -> Completion | None:
        """Return the completion if its last token ended it."""
        reason: FinishReason | None = None
        body = tokens
        if tokens[-1] in self._end_tokens:
            reason, body = "stop", tokens[:-1]
        elif len(tokens) >= sampling.max_new_tokens:
            reason = "length"
        if sampling.stop and reason is None:
            # Only the tail can have just completed a stop text; decoding it alone keeps the loop linear.
            tail = self._decode(tokens[-_STOP_TAIL_TOKENS:])
            if any(stop in tail for stop in sampling.stop):
                reason = "stop"
        if reason is None:
            return None
        text = self._decode(body)
        cuts = [text.find(stop) for stop in sampling.stop if stop in text]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        return Completion(request.key, text, len(tokens), reason)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


_STOP_TAIL_TOKENS = 24


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


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(t) for t in [*listed, tokenizer.eos_token_id] if t is not None)
