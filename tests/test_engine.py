"""The transformers engine on a tiny random model, in float32, against plain forward passes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from srlm_pipeline.config import ModelSettings
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling, derive_seed
from srlm_pipeline.generation.transformers_engine import _STOP_TAIL_TOKENS, TransformersEngine
from srlm_pipeline.judging.parser import FINAL_LINE
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.progress import LogProgress, listening

PROMPTS = ["hi", "what is the tallest of the three lighthouses", "1 2 3", "é ü 漢"]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path, way: str) -> LoadedModel:
    return load_model(tiny_model, ModelSettings(device="cpu", dtype="float32"))


def engine_of(loaded: LoadedModel, batch_size: int = 4) -> TransformersEngine:
    return TransformersEngine(loaded.model, loaded.tokenizer, "digest", batch_size)


def requests_for(engine: TransformersEngine, prompts: list[str], copies: int = 1) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"{place}#{copy}", engine.render(prompt), derive_seed(1, "test", place, copy))
        for place, prompt in enumerate(prompts)
        for copy in range(copies)
    ]


def greedy_by_hand(loaded: LoadedModel, prompt: str, n: int) -> list[int]:
    ids = loaded.tokenizer(prompt, add_special_tokens=False).input_ids
    written: list[int] = []
    with torch.inference_mode():
        while len(written) < n and (not written or written[-1] != loaded.tokenizer.eos_token_id):
            written.append(int(loaded.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


def test_greedy_output_is_that_of_plain_forward_passes(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    requests = requests_for(engine, PROMPTS)
    completions = engine.generate(requests, Sampling(max_new_tokens=12))
    for request, completion in zip(requests, completions, strict=True):
        expected = greedy_by_hand(loaded, request.prompt, 12)
        assert completion.text == loaded.tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.n_tokens == len(expected)


def test_results_come_in_the_order_of_the_requests(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, 2)
    requests = requests_for(engine, PROMPTS, 3)
    assert [c.key for c in engine.generate(requests, Sampling(1.0, 0.9, 4))] == [r.key for r in requests]


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_samples_depend_on_the_seed_alone_and_not_on_batches_or_order(loaded: LoadedModel, batch_size: int) -> None:
    sampling = Sampling(1.2, 0.95, 12)
    requests = requests_for(engine_of(loaded), PROMPTS, 3)
    expected = {c.key: c for c in engine_of(loaded, 4).generate(requests, sampling)}
    again = engine_of(loaded, batch_size).generate(requests[::-1], sampling)
    assert {c.key: c for c in again} == expected
    assert len({c.text for c in again}) > len(PROMPTS)


def test_the_first_token_follows_the_model_s_distribution(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, 256)
    prompt = engine.render("hi")
    requests = [GenerationRequest(str(n), prompt, derive_seed(7, "chi", n)) for n in range(2000)]
    drawn = [c.text for c in engine.generate(requests, Sampling(1.0, 1.0, 1))]
    letters = list("abcdefghijklmnopqrstuvwxyz")
    expected = engine.next_token_distribution([prompt], letters)[0]
    observed = np.array([drawn.count(letter) for letter in letters], dtype=float)
    rest = 1 - expected.sum()
    result = chisquare([*observed, len(drawn) - observed.sum()], np.array([*expected, rest]) * len(drawn))
    assert result.pvalue > 1e-4


def test_a_stop_text_ends_a_completion_and_is_not_part_of_it(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    requests = requests_for(engine, ["hi"], 30)
    free = engine.generate(requests, Sampling(1.5, 1.0, 24))
    stopped = engine.generate(requests, Sampling(1.5, 1.0, 24, stop=("e",)))
    assert any("e" in c.text for c in free)
    for before, after in zip(free, stopped, strict=True):
        assert after.text == before.text.split("e")[0]
        assert after.finish_reason == ("stop" if "e" in before.text else before.finish_reason)


def test_the_token_limit_is_told_from_an_end(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    for completion in engine.generate(requests_for(engine, PROMPTS, 10), Sampling(1.5, 1.0, 6)):
        assert completion.n_tokens <= 6
        if completion.finish_reason == "length":
            assert completion.n_tokens == 6


def test_every_finished_batch_is_handed_over_once(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, 3)
    batches: list[list[Completion]] = []
    completions = engine.generate(requests_for(engine, PROMPTS, 2), Sampling(1.0, 1.0, 4), batches.append)
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert sorted(c.key for batch in batches for c in batch) == sorted(c.key for c in completions)


def test_a_batch_tells_how_far_it_is(loaded: LoadedModel) -> None:
    engine, lines = engine_of(loaded, batch_size=3), list[str]()
    with LogProgress(lines.append, every=0).task("writing", 3, "replies") as task, listening(task):
        engine.generate(requests_for(engine, ["one", "two", "three"]), Sampling(max_new_tokens=4))
    assert lines[0] == "writing: 0/3 replies (3 being written, 0 of at most 4 tokens each)"
    assert len(lines) > 2


def test_nothing_is_generated_for_no_requests(loaded: LoadedModel) -> None:
    assert engine_of(loaded).generate([], Sampling()) == []


def test_an_empty_prompt_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="empty prompt"):
        engine_of(loaded).generate([GenerationRequest("k", "", 1)], Sampling())


def test_a_prompt_beyond_the_window_is_refused_with_both_numbers(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    with pytest.raises(ModelError, match=r"3000 tokens and 5 new ones exceed the model's window of 2048"):
        engine.generate([GenerationRequest("k", "a" * 3000, 1)], Sampling(max_new_tokens=5))
    with pytest.raises(ModelError, match="window"):
        engine.next_token_distribution(["a" * 3000], ["0", "1"])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_option_probabilities_are_those_of_plain_forward_passes(loaded: LoadedModel, batch_size: int) -> None:
    engine = engine_of(loaded, batch_size)
    options = list("012345")
    prefixes = [engine.render(prompt, "Score: ") for prompt in PROMPTS]
    seen: list[int] = []
    probabilities = engine.next_token_distribution(prefixes, options, seen.append)
    assert sum(seen) == len(prefixes)
    for prefix, row in zip(prefixes, probabilities, strict=True):
        ids = loaded.tokenizer(prefix, add_special_tokens=False).input_ids
        with torch.inference_mode():
            expected = loaded.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        for option, probability in zip(options, row, strict=True):
            token = loaded.tokenizer.convert_tokens_to_ids(option)
            assert probability == pytest.approx(float(expected[token]), rel=1e-3)


def test_options_of_several_tokens_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="does not write each of 1, 10 as one token"):
        engine_of(loaded).next_token_distribution(["Score: "], ["1", "10"])


def test_a_pattern_ends_a_completion_with_its_match(loaded: LoadedModel) -> None:
    engine = engine_of(loaded)
    requests = requests_for(engine, PROMPTS, 4)
    free = {c.key: c for c in engine.generate(requests, Sampling(1.0, 1.0, 40))}
    for completion in engine.generate(requests, Sampling(1.0, 1.0, 40, stop_after=r"[a-m]\w")):
        whole = free[completion.key].text
        found = re.search(r"[a-m]\w", whole)
        assert completion.text == (whole[: found.end()] if found else whole)
        assert completion.finish_reason == ("stop" if found else free[completion.key].finish_reason)


def test_samples_of_one_prompt_read_it_once(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, 8)
    shapes: list[tuple[int, int]] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    requests = requests_for(engine, PROMPTS[:1], 8)
    engine.generate(requests, Sampling(1.0, 1.0, 3))
    hook.remove()
    length = len(loaded.tokenizer(requests[0].prompt, add_special_tokens=False).input_ids)
    assert sum(tokens for rows, tokens in shapes if rows == 1) == length
    assert [shape for shape in shapes if shape[0] > 1] == [(8, 1)] * 2


def test_rows_leave_and_buffers_grow_without_changing_a_word(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, 16)
    requests = requests_for(engine, PROMPTS, 4)
    sampling = Sampling(1.0, 1.0, 150)
    together = engine.generate(requests, sampling)
    lengths = [c.n_tokens for c in together]
    # Some leave early, and some write past the first block of the cache.
    assert min(lengths) < 20
    assert max(lengths) > 60
    alone = engine_of(loaded, 1)
    assert [alone.generate([r], sampling)[0].text for r in requests] == [c.text for c in together]


def test_a_line_that_only_the_tail_begins_ends_nothing(loaded: LoadedModel) -> None:
    engine, sampling = engine_of(loaded), Sampling(max_new_tokens=500, stop_after=FINAL_LINE)

    def finish(text: str) -> Completion | None:
        tokens = loaded.tokenizer(text, add_special_tokens=False).input_ids
        assert len(tokens) > _STOP_TAIL_TOKENS
        return engine._finish(GenerationRequest("k", "p", 1), list(tokens), sampling)

    # In the last tokens alone this line would begin with any of its words.
    for start in range(_STOP_TAIL_TOKENS + 4):
        assert finish("x" * 60 + " " * start + "score: 1\n") is None, start
    found = finish("x" * 60 + "\nscore: 1\n")
    assert found is not None and found.finish_reason == "stop"
