"""The cache in place and its attention give the words that transformers' own give, whatever the architecture."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.cache_utils import DynamicLayer

from srlm_pipeline.acceleration.caches import make_cache, pass_through, prepare_attention
from srlm_pipeline.acceleration.in_place import InPlaceLayer
from srlm_pipeline.acceleration.shared_beginning import PassingLayer
from srlm_pipeline.config import ModelSettings
from srlm_pipeline.generation.engine import GenerationRequest, Sampling
from srlm_pipeline.generation.prefill import PrefixStore
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.models.loading import load_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 259,
    "max_position_embeddings": 512,
}
CONFIGS = {
    "grouped heads": LlamaConfig(**SIZES),
    "as many key heads": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "normalised queries": Qwen3Config(**SIZES),
    "sliding window": MistralConfig(**SIZES, sliding_window=16),
    "soft caps, own attention": Gemma2Config(**SIZES, sliding_window=16),
    "learned positions": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=259, n_positions=512),
}
PROMPTS = ["hi", "a longer question about lighthouses, which takes more than one block of the cache to hold", "1 2 3"]


@pytest.fixture(params=CONFIGS, ids=str)
def config(request: pytest.FixtureRequest) -> PreTrainedConfig:
    return CONFIGS[request.param]


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    # Of a copy: which attention a model has is kept in its configuration.
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


@pytest.mark.parametrize("batch_size", [1, 6])
def test_greedy_words_are_those_of_generate(
    config: PreTrainedConfig, tiny_model: Path, batch_size: int, way: str
) -> None:
    torch.manual_seed(3)
    model = model_of(config)
    for name, weights in model.named_parameters():
        # Random logits hardly differ: make choices clear, so that rounding decides nothing.
        if "norm" not in name:
            torch.nn.init.normal_(weights, std=0.3)
    tokenizer = load_tokenizer(tiny_model, ModelSettings())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    expected = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            written = model.generate(ids, max_new_tokens=80, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            expected.append(tokenizer.decode(written, skip_special_tokens=True))
    engine = TransformersEngine(model, tokenizer, "digest", batch_size)
    requests = [GenerationRequest(str(place), prompt, 0) for place, prompt in enumerate(PROMPTS * 2)]
    written = [c.text for c in engine.generate(requests, Sampling(max_new_tokens=80))]
    assert written == expected * 2


def test_only_models_with_the_default_attention_are_changed(way: str) -> None:
    changed = {}
    for name, config in CONFIGS.items():
        model = model_of(config)
        prepare_attention(model)
        changed[name] = [type(layer) is InPlaceLayer for layer in make_cache(model).layers]
    assert changed["grouped heads"] == [way == "accelerated"] * 2
    assert changed["sliding window"] == [False, False]
    assert changed["soft caps, own attention"] == [False, False]


def test_a_model_with_another_attention_keeps_it(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    prepare_attention(model)
    assert model.config._attn_implementation == "eager"
    assert AutoConfig.from_pretrained(tiny_model).model_type == "llama"


def test_the_plain_way_is_transformers_own_cache_and_attention(way: str) -> None:
    model = model_of(CONFIGS["grouped heads"])
    prepare_attention(model)
    beginning = PrefixStore(model).read([5, 6, 7])
    own = way == "plain"
    assert (model.config._attn_implementation == "sdpa") == own
    for cache, quick in ((make_cache(model), InPlaceLayer), (pass_through(model, beginning, 2), PassingLayer)):
        assert [type(layer) for layer in cache.layers] == [DynamicLayer if own else quick] * 2
