"""Families of models, each opened, asked, trained and saved as the loop does it, on tiny random weights."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from families import FAMILIES, Family, family_tokenizer, make_family

from srlm_pipeline.config import (
    CandidateSettings,
    DpoSettings,
    LoraSettings,
    ModelSettings,
    SftSettings,
    ThinkingSettings,
)
from srlm_pipeline.data.chat import (
    end_token,
    neutralise_special_tokens,
    render_user_turn,
    template_system_prompt,
    tokenize_exchange,
)
from srlm_pipeline.errors import ModelError
from srlm_pipeline.generation.candidates import write_candidates
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.generation.thoughts import Thoughts
from srlm_pipeline.generation.transformers_engine import TransformersEngine, option_tokens
from srlm_pipeline.judging.judges import Judgement
from srlm_pipeline.judging.rubric import SCORE_START, SCORES
from srlm_pipeline.judging.scoring import score_candidates
from srlm_pipeline.models.chat_format import chat_format
from srlm_pipeline.models.checkpoint import save_checkpoint
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.preference.pairs import select_best_worst
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.tables import CANDIDATES, PREFERENCE_PAIRS, check_table, read_table, write_table
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.dpo import PreferenceExample, encode_preference, preference_examples, train_dpo
from srlm_pipeline.training.sft import SftExample, train_sft

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ModelSettings(device="cpu", dtype="float32")
TRAINING: dict[str, Any] = {
    "lora": LoraSettings(rank=2, alpha=4), "learning_rate": 1e-3, "epochs": 1, "batch_size": 2, "micro_batch_size": 2,
    "max_length": 256,
}  # fmt: skip
# Nothing in it controls a turn, in whatever family: a tag, an unknown name, a family, a name in Persian with a
# zero-width non-joiner, Arabic, full-width letters.
HARMLESS = (
    "<tool_call>", "COVID", "<i>a</i>", "<filename>", "<think>", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\ufefb \u0633\u0644\u0627\u0645", "\uff21\uff22\uff5c\uff11",
)  # fmt: skip
THINKERS = ("Qwen3", "DeepSeek-R1", "SmolLM3")
CHANNELS = FAMILIES["GPT-OSS"].thinking
# Full fine-tuning for those whose generation_config.json cannot be saved as it is, adapters for the others.
FULL = ("Llama 2", "Llama 3", "DeepSeek-R1", "Gemma")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_once_around_the_loop(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    source = make_family(family, tmp_path / "base")
    settings = MODEL.model_copy(update={"thinking": family.thinking})
    loaded = load_model(source, settings)
    end = loaded.tokenizer.convert_tokens_to_ids(family.turn_end)
    drawn = two_replies(TransformersEngine(loaded.model, loaded.tokenizer, "base", 2))
    method = "full" if name in FULL else "lora"

    def job(start: Path, work: str) -> TrainingJob:
        return TrainingJob(start, settings, 1, tmp_path / work, work, NullProgress())

    sft = train_sft(job(source, "sft"), [SftExample("p", "a reply"), SftExample("q", "x" * 300)], SftSettings(
        method=method, **TRAINING
    ))  # fmt: skip
    assert (sft.n_examples, sft.n_left_out, sft.n_cut) == (2, 0, 1)
    m1 = save_checkpoint(sft.loaded, tmp_path / "M1", "M1", None, {}, "float32")
    pair = PreferenceExample(
        "hello", drawn[0].text, drawn[1].text, False, False, drawn[0].token_ids, drawn[1].token_ids
    )
    dpo = train_dpo(job(m1.path, "dpo"), [pair, PreferenceExample("p", "good", "bad")], DpoSettings(
        method=method, **TRAINING
    ))  # fmt: skip
    # Of a mixture of experts TRL adds how evenly they are used, with a weight of a thousandth.
    balance = 1e-3 * (name == "GPT-OSS")
    assert dpo.first("loss") == pytest.approx(0.6931 + balance, abs=1e-3), "the policy starts as its own reference"
    m2 = save_checkpoint(dpo.loaded, tmp_path / "M2", "M2", m1.digest, {}, "float32")
    again = load_model(m2.path, settings)
    ids = torch.tensor([again.tokenizer(render_user_turn(again.tokenizer, "hello")).input_ids])
    with torch.inference_mode():
        assert torch.allclose(again.model(ids).logits, dpo.loaded.model(ids).logits, atol=1e-5)
    inward, outward = (layer.weight for layer in (again.model.get_input_embeddings(), again.model.lm_head))
    assert (inward is outward) == family.tied
    ends = again.model.generation_config.eos_token_id
    assert end in (ends if isinstance(ends, list) else [ends]), "whoever opens the model elsewhere stops there too"
    assert chat_format(again.tokenizer) == chat_format(loaded.tokenizer)


def two_replies(engine: TransformersEngine) -> list[Completion]:
    requests = [GenerationRequest(str(n), engine.render("hello"), n) for n in range(2)]
    return engine.generate(requests, Sampling(temperature=1.0, max_new_tokens=6))


@pytest.fixture(scope="module", params=FAMILIES)
def built(request: pytest.FixtureRequest) -> tuple[Family, Any]:
    family = FAMILIES[request.param]
    tokenizer = family_tokenizer(family)
    assert chat_format(tokenizer).obstacle is None
    return family, tokenizer


def test_a_turn_ends_as_the_template_ends_it(built: tuple[Family, Any]) -> None:
    family, tokenizer = built
    end = tokenizer.convert_tokens_to_ids(family.turn_end)
    assert end_token(tokenizer) == end
    assert tokenize_exchange(tokenizer, "p", "a reply")[1][-1] == end
    assert end not in tokenize_exchange(tokenizer, "p", "a reply", ended=False)[1]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_controls_no_turn_stays_as_it_is(built: tuple[Family, Any], text: str) -> None:
    _, tokenizer = built
    assert neutralise_special_tokens(text, tokenizer) == text
    assert text in render_user_turn(tokenizer, f"What is {text}?")


@pytest.mark.parametrize("reply", ["the end", " the end"])
def test_a_reply_is_learned_behind_the_blank_that_the_template_writes(built: tuple[Family, Any], reply: str) -> None:
    family, tokenizer = built
    ids = tokenize_exchange(tokenizer, "p", reply)[1][:-1]
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": "p"}, {"role": "assistant", "content": "the end"}], tokenize=False
    )
    if family in (FAMILIES["Llama 2"], FAMILIES["Mistral"]):
        assert tokenizer.convert_ids_to_tokens(ids)[0] == "\u2581t", "as one token"
        assert "] the end" in told
        assert render_user_turn(tokenizer, "p", "Score: ").endswith("] Score: ")
    else:
        assert tokenizer.decode(ids) == reply
        assert " the end" not in told


def test_a_score_is_one_token_where_it_is_asked_for(built: tuple[Family, Any]) -> None:
    _, tokenizer = built
    shared, tokens = option_tokens(tokenizer, render_user_turn(tokenizer, "judge", SCORE_START), SCORES)
    assert [tokenizer.decode([*shared, token])[-1] for token in tokens] == list(SCORES)


def test_what_controls_a_turn_in_data_is_broken_up(built: tuple[Family, Any]) -> None:
    family, tokenizer = built
    for token in (*family.special, family.turn_end):
        if token not in ("<filename>", "<unk>"):
            ids = tokenizer(neutralise_special_tokens(f"a{token}b", tokenizer), add_special_tokens=False).input_ids
            assert tokenizer.convert_tokens_to_ids(token) not in ids


def test_strike_through_is_harmless_where_the_tag_is_no_beginning_of_a_text(built: tuple[Family, Any]) -> None:
    family, tokenizer = built
    unharmed = neutralise_special_tokens("<s>old</s>", tokenizer) == "<s>old</s>"
    assert unharmed == ("<s>" not in family.special)


def silently(tokenizer: Any) -> list[str]:
    """What a model draws before a reply that it does not think about."""
    known = chat_format(tokenizer)
    return tokenizer.tokenize(known.thinking.end) if known.opens_thought or known.in_channels else []


def test_a_reply_is_learned_as_the_tokens_that_were_drawn(built: tuple[Family, Any]) -> None:
    """The letters of "hell" one by one, which no tokenizer here writes by itself."""
    _, tokenizer = built
    drawn = tuple(tokenizer.convert_tokens_to_ids([*silently(tokenizer), *"hell"]))
    text = "hell"
    prompt, reply = tokenize_exchange(tokenizer, "p", text, drawn=drawn)
    assert reply == [*drawn, end_token(tokenizer)]
    assert prompt == tokenizer(render_user_turn(tokenizer, "p"), add_special_tokens=False).input_ids
    again = tokenize_exchange(tokenizer, "p", text)[1]
    assert again != reply and tokenizer.decode(again[:-1]).strip() == text, "without them: the same text, other tokens"
    assert (
        tokenize_exchange(tokenizer, "p", "another", drawn=drawn)[1] == tokenize_exchange(tokenizer, "p", "another")[1]
    )


def test_a_text_has_one_beginning(built: tuple[Family, Any]) -> None:
    family, tokenizer = built
    prompt = tokenize_exchange(tokenizer, "p", "a reply")[0]
    if family.bos:
        assert prompt.count(tokenizer.bos_token_id) == render_user_turn(tokenizer, "p").count(family.bos)


def test_a_special_token_within_a_reply_is_learned_where_it_was_drawn(built: tuple[Family, Any]) -> None:
    family, tokenizer = built
    drawn = tuple(tokenizer.convert_tokens_to_ids([*silently(tokenizer), "a", family.special[0], "b"]))
    assert tokenize_exchange(tokenizer, "p", "ab", drawn=drawn)[1] == [*drawn, end_token(tokenizer)]


def test_the_end_is_learned_where_it_also_pads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LookedError(Exception):
        pass

    batches: list[Any] = []

    def look(_: TrainingJob, trainer: Any) -> None:
        batches.append(next(iter(trainer.get_train_dataloader())))
        raise LookedError

    monkeypatch.setattr("srlm_pipeline.training.sft.run_trainer", look)
    source = make_family(FAMILIES["SmolLM2"], tmp_path / "base")
    job = TrainingJob(source, MODEL, 1, tmp_path / "work", "sft", NullProgress())
    with pytest.raises(LookedError):
        train_sft(job, [SftExample("p", "a long one"), SftExample("p", "b")], SftSettings(**TRAINING))
    tokenizer = family_tokenizer(FAMILIES["SmolLM2"])
    assert tokenizer.pad_token_id == end_token(tokenizer)
    learned = [tokenizer.decode(row[row >= 0]) for row in batches[0]["labels"]]
    assert learned == ["a long one<|im_end|>", "b<|im_end|>"]


class Alternating:
    """Finds every second reply good."""

    name = "alternating"

    def judge(self, items: Any, progress: Any, journal: Any = None) -> list[Judgement]:
        return [Judgement(item.key, 4.0 * (place % 2), 1, 0, 0.0, "") for place, item in enumerate(items)]


def test_tokens_travel_from_generation_to_training(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model, MODEL)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, "M1", 4)
    chosen = CandidateSettings(per_prompt=2, temperature=1.0, max_new_tokens=12)

    def candidates() -> pd.DataFrame:
        journal = Journal(tmp_path / "journal")
        prompts = [(name, f"say {name}") for name in "abcde"]
        return write_candidates(engine, prompts, chosen, 20, "candidates", NullProgress(), journal)

    written = check_table(candidates(), CANDIDATES)
    assert candidates().equals(written), "an interrupted run finds the tokens again"
    path = tmp_path / "pairs.parquet"
    write_table(
        select_best_worst(score_candidates(Alternating(), written, NullProgress())).pairs, PREFERENCE_PAIRS, path
    )
    examples = preference_examples(read_table(PREFERENCE_PAIRS, path))
    drawn = {row.completion: tuple(json.loads(row.token_ids)) for row in written.itertuples()}
    assert len(examples) > 2
    for example in examples:
        assert (example.chosen_ids, example.rejected_ids) == (drawn[example.chosen], drawn[example.rejected])
        row = encode_preference(loaded.tokenizer, example, 500)
        assert row is not None and tuple(row["chosen_ids"][: len(example.chosen_ids)]) == example.chosen_ids
    old = written.drop(columns="token_ids")
    pairs = select_best_worst(score_candidates(Alternating(), check_table(old, CANDIDATES), NullProgress())).pairs
    texts = preference_examples(check_table(pairs, PREFERENCE_PAIRS))
    assert [(e.chosen, e.chosen_ids) for e in texts] == [(e.chosen, None) for e in examples], "tables made before"


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("enabled", [None, False])
def test_a_score_is_never_asked_for_in_a_thought(name: str, enabled: bool | None) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    chat_format(tokenizer, ThinkingSettings(enabled=enabled))
    rendered = render_user_turn(tokenizer, "judge", "Score: ")
    assert rendered.endswith("Score: ")
    assert rendered.count("<think>") == rendered.count("</think>") == 1
    if enabled is False:
        assert rendered == render_user_turn(tokenizer, "judge") + "Score: ", "and none is begun"
    plain = tokenize_exchange(tokenizer, "judge", "Fine.")
    assert tokenizer.decode(plain[0]).count("</think>") == 1, "nor is a reply without a thought learned in one"
    assert tokenizer.decode(plain[1][:-1]) == "Fine."


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("trained", [True, False])
def test_thoughts_are_learned_where_that_is_wanted(name: str, trained: bool) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    chat_format(tokenizer, ThinkingSettings(trained=trained))
    prompt, reply = (
        tokenizer.decode(ids) for ids in tokenize_exchange(tokenizer, "p", "<think>\nhm\n</think>\n\nFine.")
    )
    assert ("hm" in reply) == trained
    assert (prompt + reply).count("<think>") == (prompt + reply).count("</think>") == 1
    assert reply.removesuffix(tokenizer.decode([end_token(tokenizer)])).endswith("Fine.")


def test_thoughts_in_channels_are_refused_until_the_settings_name_them(tmp_path: Path) -> None:
    folder = make_family(FAMILIES["GPT-OSS"], tmp_path / "model")
    refusal = r"must end in '<\|channel\|>final<\|message\|>'.* name it in model\.thinking\.end"
    with pytest.raises(ModelError, match=refusal):
        load_model(folder, MODEL)
    assert chat_format(load_model(folder, MODEL.model_copy(update={"thinking": CHANNELS})).tokenizer).thinks


def test_a_reply_in_a_channel_follows_its_header() -> None:
    tokenizer = family_tokenizer(FAMILIES["GPT-OSS"])
    assert render_user_turn(tokenizer, "p").endswith("<|start|>user<|message|>p<|end|><|start|>assistant")
    assert render_user_turn(tokenizer, "p", "Score: ").endswith("<|start|>assistant<|channel|>final<|message|>Score: ")
    prompt, reply = map(tokenizer.decode, tokenize_exchange(tokenizer, "p", "Fine."))
    assert prompt.endswith("<|start|>assistant<|channel|>final<|message|>")
    assert reply == "Fine.<|return|>"
    for enabled, ending in ((None, "<|start|>assistant"), (False, "<|channel|>final<|message|>")):
        chat_format(tokenizer, CHANNELS.model_copy(update={"enabled": enabled}))
        assert render_user_turn(tokenizer, "p").endswith(ending)
    assert "<|channel|>" not in neutralise_special_tokens("<|channel|>final<|message|>", tokenizer)


def test_a_thought_in_a_channel_is_no_part_of_the_reply_and_is_learned_as_it_was_drawn() -> None:
    thought = "<|channel|>analysis<|message|>Score: 1, or<|end|><|start|>assistant"
    header, wide = "<|channel|>final<|message|>", CHANNELS.model_copy(update={"max_new_tokens": 60})
    for before in (f"{thought}{header}", header):
        whole = said("GPT-OSS", f"{before}Fine.", Sampling(max_new_tokens=12), wide)
        assert (whole.text, whole.finish_reason) == ("Fine.", "stop")
        judged = Sampling(max_new_tokens=12, stop_after=r"Score: \d")
        stopped = said("GPT-OSS", f"{before}Score: 4 and more", judged, wide)
        assert (stopped.text, stopped.finish_reason) == ("Score: 4", "stop")
        long = said("GPT-OSS", f"{before}{'y' * 30}", Sampling(max_new_tokens=12), wide)
        assert (long.text, long.finish_reason) == ("y" * 12, "length")
        tokenizer = family_tokenizer(FAMILIES["GPT-OSS"])
        prompt, reply = tokenize_exchange(tokenizer, "p", whole.text, drawn=whole.token_ids)
        assert tokenizer.decode([*prompt, *reply]).endswith(f"<|start|>assistant{before}Fine.<|return|>")
    other = said("GPT-OSS", "<|channel|>commentary<|message|>To begin with.", Sampling(max_new_tokens=50), wide)
    assert (other.text, other.finish_reason) == ("", "stop"), "what is in no known channel is no reply"
    endless = said("GPT-OSS", f"{thought}{'y' * 90}", Sampling(max_new_tokens=12), wide)
    assert (endless.text, endless.finish_reason, endless.n_tokens) == ("", "length", 72)


def said(name: str, text: str, sampling: Sampling, settings: ThinkingSettings | None = None) -> Completion:
    """Return what the engine makes of a text that is drawn token by token."""
    tokenizer = family_tokenizer(FAMILIES[name])
    chat_format(tokenizer, settings or FAMILIES[name].thinking)
    engine = TransformersEngine.__new__(TransformersEngine)
    engine._tokenizer, engine._thoughts = tokenizer, Thoughts(tokenizer)
    engine._end_tokens = frozenset([end_token(tokenizer)])
    request = GenerationRequest("k", render_user_turn(tokenizer, "p"), 0)
    tokens: list[int] = []
    for token in [*tokenizer(text, add_special_tokens=False).input_ids, end_token(tokenizer)]:
        tokens.append(token)
        if (completion := engine._finish(request, tokens, sampling)) is not None:
            return completion
    raise AssertionError("it did not end")


WIDE = ThinkingSettings(max_new_tokens=40)


@pytest.mark.parametrize("name", THINKERS)
def test_a_thought_is_no_part_of_the_reply(name: str) -> None:
    opening = "" if chat_format(family_tokenizer(FAMILIES[name])).opens_thought else "<think>\n"
    thought = f"{opening}Score: 1, or\n</thin\n"
    judged = Sampling(max_new_tokens=12, stop_after=r"Score: \d")
    stopped = said(name, f"{thought}</think>\n\nScore: 4 and more", judged, WIDE)
    assert (stopped.text, stopped.finish_reason) == ("Score: 4", "stop"), "what a thought says ends nothing"
    whole = said(name, f"{thought}</think>\n\nFine.", Sampling(max_new_tokens=12), WIDE)
    assert (whole.text, whole.finish_reason) == ("Fine.", "stop")
    assert whole.token_ids is not None and len(whole.token_ids) == whole.n_tokens - 1
    long = said(name, f"{thought}</think>{'y' * 30}", Sampling(max_new_tokens=12), WIDE)
    assert (long.text, long.finish_reason) == ("y" * 12, "length"), "it has its own tokens, and no more"
    endless = said(name, opening + "y" * 90, Sampling(max_new_tokens=12), WIDE)
    assert (endless.text, endless.finish_reason, endless.n_tokens) == ("", "length", 52)


@pytest.mark.parametrize("name", THINKERS)
def test_a_thought_without_its_beginning_is_one_too(name: str) -> None:
    assert said(name, "hm\n</think>\n\nFine.", Sampling(max_new_tokens=40), WIDE).text == "Fine."


@pytest.mark.parametrize("enabled", [None, True, False])
def test_data_may_speak_of_the_mark_of_a_thought(enabled: bool | None) -> None:
    tokenizer = family_tokenizer(FAMILIES["Qwen3"])
    chat_format(tokenizer, ThinkingSettings(enabled=enabled))
    for reply in ("<think> is a tag.", "It ends with </think>, always."):
        assert tokenizer.decode(tokenize_exchange(tokenizer, "p", reply, ended=False)[1]) == reply


def test_a_model_that_does_not_think_may_write_of_thoughts() -> None:
    reply = said("Qwen2.5", "<think>no</think>", Sampling(max_new_tokens=99))
    assert reply.text == "<think>no</think>"


@pytest.mark.parametrize("name", THINKERS)
def test_a_pair_with_one_thought_is_learned_without(name: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    row = encode_preference(tokenizer, PreferenceExample("p", "<think>hm</think>good", "bad"), 400)
    plain = encode_preference(tokenizer, PreferenceExample("p", "good", "bad"), 400)
    assert row == plain is not None


@pytest.mark.parametrize(("name", "expected"), [
    ("Llama 3", "Today Date: 26 Jul 2024"), ("SmolLM3", "Today Date: 26 July 2024"),
    ("Qwen2.5", "You are a helpful model made by a company of some sort."), ("Gemma", ""), ("Mistral", ""),
])  # fmt: skip
def test_what_a_template_says_by_itself_is_known_and_the_same_every_day(name: str, expected: str) -> None:
    prompt = template_system_prompt(family_tokenizer(FAMILIES[name]))
    assert expected in prompt and bool(prompt) == bool(expected)
