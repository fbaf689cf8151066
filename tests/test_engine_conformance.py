"""What every engine must do, whatever computes: one suite for all of them, in float32 against plain transformers.

vLLM is tested where the environment variable SRLM_TEST_VLLM_PYTHON names the interpreter of an environment that has it.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from completion_server import CompletionServer, serving
from conftest import WINDOW, prefer_letters
from scipy.stats import chisquare

from srlm_pipeline.config import EngineSettings, ModelSettings, Settings
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling, TextEngine, derive_seed
from srlm_pipeline.generation.opening import open_engine, release_engines
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import LoadedModel, load_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

# Opens a model folder with a number of rows or requests that are worked on together.
Open = Callable[[Path, int], TextEngine]

IN_FLOAT32 = ModelSettings(device="cpu", dtype="float32")
PROMPTS = ["hi", "what is the tallest of the three lighthouses", "1 2 3", "é ü 漢"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789 "]
VLLM_PYTHON = os.environ.get("SRLM_TEST_VLLM_PYTHON")
NEEDS_VLLM = pytest.mark.skipif(not VLLM_PYTHON, reason="SRLM_TEST_VLLM_PYTHON names no interpreter with vLLM")


def sibling(tiny_model: Path, folder: Path, change: "Callable[[LlamaForCausalLM], None]") -> Path:
    """Save a model with the tiny one's tokenizer, and with heads wide enough for vLLM's kernels."""
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig.from_pretrained(tiny_model, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    config.head_dim = 32
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig.from_pretrained(tiny_model)
    prefer_letters(model, tokenizer)
    change(model)
    model.save_pretrained(folder)
    for file in tiny_model.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sibling(tiny_model, tmp_path_factory.mktemp("models") / "plain", lambda _: None)


@pytest.fixture(scope="module")
def writer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes the three bytes of 漢 one after the other, again and again."""

    def always_the_same(model: "LlamaForCausalLM") -> None:
        loaded = load_model(tiny_model, IN_FLOAT32)
        cycle = loaded.tokenizer("漢", add_special_tokens=False).input_ids
        assert len(cycle) == 3
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
                    weights.zero_()
            # Each token's place says what follows it; whatever else the text ends in is followed by the first byte.
            model.model.embed_tokens.weight[:, 0] = 1.0
            model.lm_head.weight[cycle[0], 0] = 10.0
            for place, token in enumerate(cycle):
                model.model.embed_tokens.weight[token] = 0.0
                model.model.embed_tokens.weight[token, place + 1] = 1.0
                model.lm_head.weight[cycle[(place + 1) % 3], place + 1] = 10.0

    return sibling(tiny_model, tmp_path_factory.mktemp("models") / "writer", always_the_same)


@pytest.fixture(scope="module", params=["transformers", "openai", pytest.param("vllm", marks=NEEDS_VLLM)])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    kind = request.param
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    patch.setenv("HF_HUB_OFFLINE", "1")
    servers: dict[Path, CompletionServer] = {}

    with ExitStack() as stack:
        stack.callback(patch.undo)
        stack.callback(release_engines)

        def open_as(folder: Path, together: int) -> TextEngine:
            if kind == "openai" and folder not in servers:
                served = serving(load_model(folder, IN_FLOAT32), str(folder))
                servers[folder] = stack.enter_context(served)
            settings = Settings(
                model=IN_FLOAT32,
                engine=EngineSettings(
                    kind=kind,
                    base_url=servers[folder].address if kind == "openai" else None,
                    vllm_python=VLLM_PYTHON,
                    # On a CPU, vLLM 0.32 cannot read a prompt in parts when its sample has a seed.
                    vllm_arguments=("--enforce-eager", "--no-enable-chunked-prefill"),
                    concurrency=together,
                ),
            )
            return open_engine(Checkpoint(folder, folder.name, f"digest of {folder.name}", None), settings, together)

        yield open_as


@pytest.fixture
def engine(opened: Open, model: Path) -> TextEngine:
    return opened(model, 8)


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return load_model(model, IN_FLOAT32)


def requests_for(engine: TextEngine, copies: int = 1, stage: str = "test") -> list[GenerationRequest]:
    return [
        GenerationRequest(f"{place}#{copy}", engine.render(prompt), derive_seed(1, stage, place, copy))
        for place, prompt in enumerate(PROMPTS)
        for copy in range(copies)
    ]


def logits_after(loaded: LoadedModel, prompt: str) -> torch.Tensor:
    ids = loaded.tokenizer(prompt, add_special_tokens=False).input_ids
    with torch.inference_mode():
        return loaded.model(torch.tensor([ids])).logits[0, -1]


def test_greedy_output_is_that_of_transformers(engine: TextEngine, loaded: LoadedModel) -> None:
    requests = requests_for(engine)
    for request, completion in zip(requests, engine.generate(requests, Sampling(max_new_tokens=24)), strict=True):
        ids = loaded.tokenizer(request.prompt, add_special_tokens=False, return_tensors="pt")
        written = loaded.model.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids.input_ids.shape[1] :]
        assert completion.key == request.key
        assert completion.text == loaded.tokenizer.decode(written, skip_special_tokens=True)
        assert completion.n_tokens == len(written)
        assert completion.finish_reason == ("stop" if written[-1] == loaded.tokenizer.eos_token_id else "length")


def test_samples_depend_on_the_seed_and_not_on_order_or_batches(opened: Open, model: Path) -> None:
    sampling = Sampling(1.2, 0.95, 12)
    requests = requests_for(opened(model, 8), 4)
    first = {c.key: c for c in opened(model, 8).generate(requests, sampling)}
    alone = {c.key: c for c in opened(model, 1).generate(requests[::-1], sampling)}
    assert alone == first
    reseeded = requests_for(opened(model, 8), 4, "another stage")
    other = {c.key: c for c in opened(model, 8).generate(reseeded, sampling)}
    assert sum(other[key].text != first[key].text for key in first) > len(first) / 2


def test_samples_of_long_prompts_do_not_depend_on_how_they_are_read(opened: Open, model: Path) -> None:
    together, alone = opened(model, 16), opened(model, 1)
    requests = [
        GenerationRequest(str(n), together.render("all work and no play " * (10 * n)), derive_seed(3, "long", n))
        for n in range(1, 9)
    ]
    sampling = Sampling(1.0, 0.95, 8)
    written = together.generate(requests, sampling)
    assert alone.generate(requests, sampling) == written


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_samples_follow_the_model_s_distribution(
    opened: Open, model: Path, loaded: LoadedModel, temperature: float, top_p: float
) -> None:
    engine = opened(model, 64)
    prompt = engine.render("hi")
    probabilities, tokens = (logits_after(loaded, prompt).double() / temperature).softmax(-1).sort(descending=True)
    kept = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    exact = {
        loaded.tokenizer.decode([t]): p for t, p in zip(tokens.tolist(), (kept / kept.sum()).tolist(), strict=True)
    }
    requests = [GenerationRequest(str(n), prompt, derive_seed(7, "draws", n)) for n in range(1500)]
    drawn = [c.text for c in engine.generate(requests, Sampling(temperature, top_p, 1))]

    binned = [letter for letter in LETTERS if exact[letter] * len(drawn) >= 5]
    expected = np.array([exact[letter] for letter in binned]) * len(drawn)
    observed = np.array([drawn.count(letter) for letter in binned], dtype=float)
    rest = len(drawn) - expected.sum()
    if rest >= 5:
        expected, observed = np.append(expected, rest), np.append(observed, len(drawn) - observed.sum())
    assert len(binned) > 10
    assert chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 1e-3
    outside = [letter for letter in LETTERS if exact[letter] == 0]
    assert not set(drawn) & set(outside)
    assert bool(outside) == (top_p < 1)


def test_the_smallest_nucleus_is_the_likeliest_token(engine: TextEngine) -> None:
    requests = requests_for(engine, 3)
    greedy = engine.generate(requests, Sampling(0.0, 1.0, 6))
    assert [c.text for c in engine.generate(requests, Sampling(1.0, 0.001, 6))] == [c.text for c in greedy]


def test_a_stop_text_ends_a_completion_and_is_not_part_of_it(engine: TextEngine) -> None:
    requests = requests_for(engine, 8)
    free = engine.generate(requests, Sampling(1.0, 0.9, 24))
    stopped = engine.generate(requests, Sampling(1.0, 0.9, 24, stop=("e", "17")))
    assert any("e" in c.text for c in free)
    for before, after in zip(free, stopped, strict=True):
        assert after.text == re.split("e|17", before.text)[0]
        assert after.finish_reason == ("stop" if after.text != before.text else before.finish_reason)


def test_a_pattern_ends_a_completion_and_is_part_of_it(engine: TextEngine) -> None:
    requests = requests_for(engine, 8)
    free = engine.generate(requests, Sampling(1.0, 0.9, 24))
    stopped = engine.generate(requests, Sampling(1.0, 0.9, 24, stop_after="[a-f][0-9]"))
    assert any(re.search("[a-f][0-9]", c.text) for c in free)
    for before, after in zip(free, stopped, strict=True):
        found = re.search("[a-f][0-9]", before.text)
        assert after.text == (before.text[: found.end()] if found else before.text)
        assert after.finish_reason == ("stop" if found else before.finish_reason)


def test_tokens_are_counted_with_the_end_token_and_up_to_the_limit(engine: TextEngine, loaded: LoadedModel) -> None:
    completions = engine.generate(requests_for(engine, 10), Sampling(1.0, 0.8, 24))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        drawn = len(loaded.tokenizer(completion.text, add_special_tokens=False).input_ids)
        assert completion.n_tokens == (24 if completion.finish_reason == "length" else drawn + 1)
        assert "<|" not in completion.text


def test_characters_of_several_tokens_come_whole(opened: Open, writer: Path) -> None:
    engine = opened(writer, 8)
    request = GenerationRequest("key", engine.render("hi"), 1)
    assert engine.generate([request], Sampling(max_new_tokens=9)) == [Completion("key", "漢漢漢", 9, "length")]
    assert engine.generate([request], Sampling(max_new_tokens=9, stop=("漢",)))[0].text == ""


def test_another_model_s_weights_are_really_used(opened: Open, model: Path, writer: Path) -> None:
    first, second = opened(model, 8), opened(writer, 8)
    request = GenerationRequest("key", first.render("hi"), 1)
    written = first.generate([request], Sampling(max_new_tokens=6))
    assert second.generate([request], Sampling(max_new_tokens=6))[0].text == "漢漢"
    assert first.generate([request], Sampling(max_new_tokens=6)) == written
    assert "漢" not in written[0].text


def test_an_empty_prompt_is_refused(engine: TextEngine) -> None:
    with pytest.raises(ModelError, match="empty prompt"):
        engine.generate([GenerationRequest("k", "", 1)], Sampling())


def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(engine: TextEngine) -> None:
    with pytest.raises(ModelError, match=rf"3000 tokens and 5 new ones exceed the model's window of {WINDOW}"):
        engine.generate([GenerationRequest("k", "a" * 3000, 1)], Sampling(max_new_tokens=5))
    with pytest.raises(ModelError, match="window"):
        engine.next_token_distribution(["a" * 3000], ["0", "1"])


def test_option_probabilities_are_those_of_transformers(engine: TextEngine, loaded: LoadedModel) -> None:
    options = [*"012345"]
    prefixes = [engine.render(prompt, "Score: ") for prompt in PROMPTS]
    probabilities = engine.next_token_distribution(prefixes, options)
    tokens = [loaded.tokenizer.convert_tokens_to_ids(option) for option in options]
    exact = [logits_after(loaded, prefix).softmax(-1)[tokens].tolist() for prefix in prefixes]
    assert probabilities == pytest.approx(np.array(exact), abs=1e-2, rel=1e-2)
    assert (probabilities.sum(axis=1) <= 1).all()


def test_several_questions_about_each_reply_are_answered_as_one_by_one(engine: TextEngine) -> None:
    prefixes = [
        engine.render(f"{reply} {question}", "Score: ")
        for reply in ("one reply, which is read once", "another one", "1" * 60)
        for question in ("Is it right?", "Is it short?", "Does it say what was asked?")
    ]
    alone = [engine.next_token_distribution([prefix], ["0", "1"])[0].tolist() for prefix in prefixes]
    assert engine.next_token_distribution(prefixes, ["0", "1"]) == pytest.approx(np.array(alone), abs=1e-2, rel=1e-2)


def test_a_rationale_goes_before_the_options_and_cannot_end_the_reply(engine: TextEngine, loaded: LoadedModel) -> None:
    prefix = engine.render("hi", "It says <|im_end|>.\nScore: ")
    (probabilities,) = engine.next_token_distribution([prefix], ["0", "1"])
    exact = logits_after(loaded, prefix).softmax(-1)[loaded.tokenizer.convert_tokens_to_ids(["0", "1"])]
    assert probabilities == pytest.approx(exact.numpy(), abs=1e-2, rel=1e-2)
    ends = loaded.tokenizer(prefix, add_special_tokens=False).input_ids.count(loaded.tokenizer.eos_token_id)
    assert ends == engine.render("hi").count("<|im_end|>")


def test_options_of_several_tokens_are_refused(engine: TextEngine) -> None:
    with pytest.raises(ModelError, match="does not write each of 1, 10 as one token"):
        engine.next_token_distribution(["Score: "], ["1", "10"])


def test_nothing_is_asked_for_nothing(engine: TextEngine) -> None:
    assert engine.generate([], Sampling()) == []
    assert engine.next_token_distribution([], ["0", "1"]).shape == (0, 2)


def test_every_item_is_handed_over_once(engine: TextEngine) -> None:
    batches: list[list[Completion]] = []
    completions = engine.generate(requests_for(engine, 5), Sampling(1.0, 1.0, 4), batches.append)
    assert sorted(c.key for batch in batches for c in batch) == sorted(c.key for c in completions)
    assert all(batches)
    counts: list[int] = []
    engine.next_token_distribution([engine.render(prompt) for prompt in PROMPTS], ["0", "1"], counts.append)
    assert sum(counts) == len(PROMPTS)
