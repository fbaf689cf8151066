"""How models are loaded, and what runs them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from srlm_pipeline.config.sections import Section, resources


class ThinkingSettings(Section):
    """Models that write a thought before their reply."""

    # Not read by what writes and judges.
    apart = frozenset({"trained"})
    enabled: bool | None = Field(
        None, description="whether models think; None: as their chat template has it (its variable enable_thinking)"
    )
    start: str = Field("<think>", min_length=1, description="what a thought begins with")
    end: str = Field("</think>", min_length=1, description="what a thought ends with; the reply follows")
    max_new_tokens: int = Field(
        1024, ge=0, description="tokens for the thought, beside those of the reply; only of models that think"
    )
    trained: bool = Field(True, description="whether DPO and SFT learn the thoughts too, where they are known")

    @property
    def manner(self) -> str:
        """What tells replies under these settings from others of the same weights; blank for the default."""
        drawn = self.model_dump(exclude={"trained"}, exclude_defaults=True)
        return "".join(f"+{name}={value}" for name, value in sorted(drawn.items()))


class ModelSettings(Section):
    """How models are loaded and stored."""

    device: str = resources("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = resources(
        "auto", description="compute type; auto: bfloat16 where the device has it, float32 otherwise"
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = resources(
        "auto",
        description="implementation of attention; auto: transformers' choice, and eager where training on a CPU; "
        "flash_attention_2 needs a GPU and the package flash-attn",
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="type of the saved weights, which the next iteration starts from; bfloat16 takes half the disk and "
        "rounds small updates away",
    )
    trust_remote_code: bool = resources(False, description="run code that a model repository ships")
    thinking: ThinkingSettings = ThinkingSettings()


class EngineSettings(Section):
    """What writes and judges; `engine: vllm` is short for `engine: {kind: vllm}`."""

    short_form = "kind"
    kind: Literal["auto", "transformers", "vllm", "openai"] = Field(
        "auto",
        description="auto: vllm where a CUDA device and a vLLM installation are found, transformers otherwise; "
        "openai: any server that speaks its protocol",
    )
    vllm_python: str | None = Field(
        None, description="interpreter of the environment that has vLLM; None: the one that runs the pipeline"
    )
    vllm_arguments: tuple[str, ...] = Field((), description="further arguments of `vllm serve`")
    vllm_servers: int = Field(
        1, ge=1, description="servers that vLLM is started as, on devices of their own; if one dies, the others go on"
    )
    data_parallel_size: int = Field(1, ge=1, description="copies of the model in each vLLM server, which balances them")
    tensor_parallel_size: int = Field(1, ge=1, description="devices over which vLLM splits each copy of the model")
    base_url: str | tuple[str, ...] | None = Field(
        None, description="of the server, or a list of them, e.g. http://127.0.0.1:8000/v1; for openai"
    )
    model: str = Field(
        "{path}",
        description="name under which the server knows a model; {path}, {name} and {digest} are the checkpoint's",
    )
    api_key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the server's key")
    concurrency: int | None = Field(
        None,
        ge=1,
        description="requests in flight at each server; None: 16, or 256 for each copy of a vLLM that we start",
    )
    timeout_seconds: float = Field(600.0, gt=0, description="of one request, the wait for its turn included")
    max_retries: int = Field(5, ge=0, description="of a request that failed for the server's sake, with back-off")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the servers of `base_url`."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url or ()

    @model_validator(mode="after")
    def _servers_are_named(self) -> EngineSettings:
        if self.kind == "openai" and not all(self.addresses or ("",)):
            raise ValueError("engine.kind openai needs engine.base_url")
        names = [address.rstrip("/") for address in self.addresses]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"engine.base_url names {twice} twice")
        return self


# Programs in the place of a model: a judge of replies, an arbiter of matches.
VERIFIERS = "verifiers"


class ServerSettings(Section):
    """An OpenAI-compatible server that is asked for its opinion; the key comes from the environment alone."""

    base_url: str | None = Field(None, description="e.g. https://api.openai.com/v1; None: a model on this machine")
    api_key_variable: str = resources("OPENAI_API_KEY", description="environment variable that holds the server's key")
    concurrency: int = resources(8, ge=1, description="requests in flight")
    timeout_seconds: float = resources(120.0, gt=0, description="of one request")
    max_retries: int = resources(5, ge=0, description="of a request that failed for the server's sake, with back-off")
    max_requests: int = resources(
        2000, ge=1, description="budget of one materialization; answers known from before cost nothing"
    )
    max_new_tokens: int = Field(512, ge=1, description="of one opinion")
    input_price: float | None = resources(
        None, ge=0, description="of a million tokens read, in any currency; None: only a server that tells tells costs"
    )
    output_price: float | None = resources(None, ge=0, description="of a million tokens drawn, likewise")


def require_name(model: str, server: ServerSettings, *own: str) -> None:
    """Refuse to take a server's model for one of our own names.

    Raises:
        ValueError: If it has such a name.
    """
    if server.base_url and model in own:
        raise ValueError(f"with server.base_url, model is the name of the server's model, not {model!r}")
