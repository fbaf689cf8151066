"""A causal language model small enough to train within a test: random weights, byte-level tokens, ChatML turns."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from srlm_pipeline.acceleration.switch import SWITCH
from srlm_pipeline.cli import quiet_libraries
from srlm_pipeline.config import OVERRIDES_VARIABLE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

quiet_libraries()
# A test on a busy machine is slow, not wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Two workers of two threads each on two cores would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WINDOW = 2048


@pytest.fixture(scope="module", params=["accelerated", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of doing the work: round slow code of other libraries, and with the libraries as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, str(int(request.param == "plain")))
        yield request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: with tiny matrices two wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def environment(one_thread: None) -> Iterator[pytest.MonkeyPatch]:
    """An environment for homes that nothing set outside reaches."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "SRLM_CONFIG", OVERRIDES_VARIABLE):
            patch.delenv(name, raising=False)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield patch


def prefer_letters(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast") -> None:
    """Make random text look like short words: the first dimension, the same in every state, acts as a bias."""
    import torch

    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = -3.0
        for token in [*"abcdefghijklmnopqrstuvwxyz0123456789"]:
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token), 0] = 0.0
        # A blank, as byte-level tokenizers write it, and the end of a turn.
        for token, weight in (("\u0120", 0.4), ("<|im_end|>", 0.2)):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token), 0] = weight


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model that `write_tiny_model` makes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(folder)
    return folder


def write_tiny_model(folder: Path) -> None:
    """Fill a folder with a random two-layer Llama whose every token is one byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: place for place, token in enumerate(special + alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=WINDOW,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=WINDOW,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )
    prefer_letters(model, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
