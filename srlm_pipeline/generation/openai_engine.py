"""An engine over one or several servers with OpenAI's completions endpoint: vLLM, SGLang, llama.cpp and others.

A server continues exact token ids, so the local tokenizer alone decides what the model reads. What a server
cannot do is said in docs/engines.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.config import Settings
from srlm_pipeline.data.chat import end_token, render_user_turn
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.completion_client import Answer, CompletionClient
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling, cut
from srlm_pipeline.generation.parallel import in_parallel
from srlm_pipeline.generation.server_pool import ServerPool, for_each_of
from srlm_pipeline.generation.thoughts import Thoughts
from srlm_pipeline.generation.transformers_engine import option_tokens
from srlm_pipeline.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IN_FLIGHT = 16
# What every server accepts as a seed; llama.cpp reads 32 bits, and takes the largest of them for "any".
_SEEDS = 2**31
_MOST_LISTED = 20
# An option that a server does not list is at most as likely as the least one listed: no more error than this.
_MOST_UNLISTED = 1e-2


class OpenAIEngine:
    """A `TextEngine` over servers.

    Args:
        checkpoint: The model that must be served.
        tokenizer: The model's, with a chat template.
        servers: One or several.
        trust_remote_code: Whether the model's configuration may run code.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: PreTrainedTokenizerBase,
        servers: ServerPool,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoConfig

        self._checkpoint, self._tokenizer, self._servers = checkpoint, tokenizer, servers
        config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=trust_remote_code)
        self._window = getattr(config, "max_position_embeddings", None)
        self._end_tokens = _end_tokens(checkpoint, config, tokenizer)
        self._thoughts = Thoughts(tokenizer)

    @property
    def digest(self) -> str:
        """Fingerprint of the weights that the server is asked for, and of how they think."""
        return self._checkpoint.digest + self._thoughts.manner

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

        When the server fails, what it has finished is handed to `on_finished` before the error is raised.

        Raises:
            ModelError: If the server does not serve this model, or a prompt does not fit its window.
            ServerError: If the server cannot be reached, or fails more often than it may.
        """
        if not requests:
            return []
        window = self._require_served()
        encoded = [self._encode(request.prompt) for request in requests]
        limit = self._thoughts.limit(sampling)
        for prompt in encoded:
            self._check_fits(len(prompt), limit, window)

        def write(place: int) -> Completion:
            answer = self._complete(
                encoded[place],
                max_tokens=limit,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=requests[place].seed % _SEEDS,
                # vLLM's name for it; servers that do not know it leave it alone.
                return_token_ids=True,
                # A thought may say anything.
                stop=[] if self._thoughts.expected else list(sampling.stop),
            )
            return self._completion(requests[place], answer, sampling)

        return in_parallel(len(requests), write, self._servers.in_flight, on_finished)

    def next_token_distribution(
        self,
        prefixes: Sequence[str],
        options: Sequence[str],
        on_finished: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Return option probabilities, one token drawn per prefix; see `TextEngine.next_token_distribution`.

        Raises:
            ModelError: If an option is not a single token after the prefix, or if the server lists too few tokens to
                tell an option's probability.
            ServerError: See `generate`.
        """
        if not prefixes:
            return np.zeros((0, len(options)))
        window = self._require_served()
        split = [option_tokens(self._tokenizer, prefix, options) for prefix in prefixes]
        for prompt, _ in split:
            self._check_fits(len(prompt), 1, window)

        def weigh(place: int) -> list[float]:
            prompt, tokens = split[place]
            answer = self._complete(
                prompt,
                max_tokens=1,
                temperature=0.0,
                logprobs=_MOST_LISTED,
                # vLLM names exactly the tokens asked for; other servers list the likeliest, by their text.
                logprob_token_ids=tokens,
                return_tokens_as_token_ids=True,
            )
            return self._option_probabilities(answer.log_probabilities, tokens)

        def report(rows: list[list[float]]) -> None:
            if on_finished:
                on_finished(len(rows))

        return np.array(in_parallel(len(prefixes), weigh, self._servers.in_flight, report))

    def _require_served(self) -> int | None:
        """Make sure that the server serves this model, and return its window."""
        windows = [window for window in (self._window, self._servers.require()) if window is not None]
        return min(windows, default=None)

    def _encode(self, prompt: str) -> list[int]:
        ids = list(self._tokenizer(prompt, add_special_tokens=False).input_ids)
        if not ids:
            raise ModelError(self.digest, "an empty prompt cannot be continued; apply the chat template first")
        return ids

    def _check_fits(self, prompt_tokens: int, new_tokens: int, window: int | None) -> None:
        if window is not None and prompt_tokens + new_tokens > window:
            raise ModelError(
                self.digest,
                f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones exceed the model's window of {window}: "
                "shorten the prompt or lower max_new_tokens",
            )

    def _complete(self, prompt: Sequence[int], **fields: Any) -> Answer:
        answer = self._servers.complete(
            prompt,
            stop_token_ids=self._end_tokens,
            skip_special_tokens=not self._thoughts.marks_are_special,
            **fields,
        )
        if answer.n_prompt_tokens != len(prompt):
            raise ModelError(
                self.digest,
                f"the server read {answer.n_prompt_tokens} tokens where {len(prompt)} were sent: it changes prompts, "
                "so what it writes is not this model's reply",
            )
        return answer

    def _completion(self, request: GenerationRequest, answer: Answer, sampling: Sampling) -> Completion:
        text = self._thoughts.reply(request.prompt, answer.text)
        shortened = cut(text, sampling)
        if shortened is not None:
            return Completion(request.key, shortened, answer.n_tokens, "stop")
        drawn = answer.token_ids
        if drawn is not None and drawn[-1:] and drawn[-1] in self._end_tokens:
            drawn = drawn[:-1]
        return Completion(request.key, text, answer.n_tokens, answer.finish_reason, drawn)

    def _option_probabilities(self, listed: Mapping[str, float], tokens: Sequence[int]) -> list[float]:
        found = [listed.get(f"token_id:{token}", listed.get(self._tokenizer.decode([token]))) for token in tokens]
        missing = found.count(None)
        bound = math.exp(min(listed.values())) if listed else 1.0
        if missing and bound > _MOST_UNLISTED:
            raise ModelError(
                self.digest,
                f"the server tells the probabilities of {len(listed)} tokens, the least likely {bound:.2g}, and not "
                f"those of {missing} of the {len(tokens)} options: too few to judge by. Use vLLM, which tells the "
                "options' own, or judge.mode sampled",
            )
        rest = max(0.0, 1.0 - sum(map(math.exp, listed.values())))
        unlisted = min(bound, rest / missing) if missing else 0.0
        return [unlisted if value is None else math.exp(value) for value in found]


def open_openai_engine(checkpoint: Checkpoint, settings: Settings) -> OpenAIEngine:
    """Return an engine over the servers that the settings name.

    Args:
        checkpoint: The model that must be served.
        settings: `engine` and `model` are read.
    """
    from srlm_pipeline.models.loading import load_tokenizer

    engine = settings.engine
    chosen = for_each_of(len(engine.addresses), engine)
    servers = ServerPool(
        [CompletionClient(chosen, address) for address in engine.addresses],
        served_name(checkpoint, engine.model),
        checkpoint.path,
        engine.concurrency or IN_FLIGHT,
        engine.max_retries + 1,
    )
    tokenizer = load_tokenizer(checkpoint.path, settings.model)
    return OpenAIEngine(checkpoint, tokenizer, servers, settings.model.trust_remote_code)


def served_name(checkpoint: Checkpoint, pattern: str) -> str:
    """Fill the setting `engine.model`."""
    facts = {"{path}": str(checkpoint.path), "{name}": checkpoint.name, "{digest}": checkpoint.digest}
    for placeholder, value in facts.items():
        pattern = pattern.replace(placeholder, value)
    return pattern


def _end_tokens(checkpoint: Checkpoint, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what ends a reply; servers look at some of these places only."""
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(checkpoint.path).eos_token_id
    except OSError:
        configured = getattr(config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return sorted({int(t) for t in [*listed, tokenizer.eos_token_id, end_token(tokenizer)] if t is not None})
