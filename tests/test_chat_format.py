"""Chat templates are tried when a model is opened: what cannot work is refused in one sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE
from families import CHATML, FAMILIES, family_tokenizer, make_family
from hypothesis import example, given, settings
from hypothesis import strategies as st

from srlm_pipeline.commands.diagnosis import _base_model
from srlm_pipeline.config import ModelSettings, Settings
from srlm_pipeline.data.chat import neutralise_special_tokens, render_user_turn, template_turn_marks, tokenize_exchange
from srlm_pipeline.errors import ModelError
from srlm_pipeline.models.chat_format import chat_format
from srlm_pipeline.models.loading import load_model, load_tokenizer

MODEL = ModelSettings(device="cpu", dtype="float32")
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURNS, TEXT = CHAT_TEMPLATE.removesuffix(HEADER), "{{ message['content'] }}"
REFUSED = {
    "the text in capitals": (CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper"), "changes the"),
    "the text escaped": (CHAT_TEMPLATE.replace("message['content']", "message['content'] | e"), "changes the user"),
    "no text": (CHAT_TEMPLATE.replace(TEXT, ""), "leaves out the user's text"),
    "another field": (CHAT_TEMPLATE.replace("message['content']", "message['text']"), "leaves out the user's text"),
    "no replies": (
        CHAT_TEMPLATE.replace(TEXT, f"{{% if message.role == 'user' %}}{TEXT}{{% endif %}}"),
        "leaves out the assistant's text",
    ),
    "add_generation_prompt ignored": (TURNS, r"must end in '<|im_start|>assistant'"),
    "nothing between": ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "nothing between"),
    "a syntax error": ("{% for m in messages %}{{ m.content }", "cannot be applied"),
    "an unknown filter": ("{% for m in messages %}{{ m.content | shout }}{% endfor %}", "cannot be applied"),
    "no users": (
        "{% if messages[0].role == 'user' %}{{ raise_exception('I talk to nobody') }}{% endif %}",
        "I talk to nobody",
    ),
    "endless": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be applied"),
}  # fmt: skip


def with_template(tiny_model: Path, folder: Path, template: str) -> Path:
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.parametrize("what", REFUSED)
def test_a_template_that_cannot_work_is_refused_in_one_sentence(tiny_model: Path, tmp_path: Path, what: str) -> None:
    template, reason = REFUSED[what]
    folder = with_template(tiny_model, tmp_path / "model", template)
    with pytest.raises(ModelError) as refused:
        load_tokenizer(folder, MODEL)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_doctor_says_what_a_template_does_and_what_is_wrong_with_it(tiny_model: Path, tmp_path: Path) -> None:
    assert _base_model(Settings(base_model=str(tiny_model))).endswith("it replies and ends with <|im_end|>")
    thinker = make_family(FAMILIES["Qwen3"], tmp_path / "thinker")
    assert "it replies, after a thought (<think>), and ends" in _base_model(Settings(base_model=str(thinker)))
    deaf = with_template(tiny_model, tmp_path / "deaf", REFUSED["no text"][0])
    with pytest.raises(ModelError, match="leaves out the user's text"):
        _base_model(Settings(base_model=str(deaf)))


@pytest.mark.parametrize(("changes", "said"), [
    ({"eos_token": None}, None), ({"pad_token": None}, None), ({"extra_special_tokens": ["<|im_start|>"]}, None),
    ({"model_max_length": 1000000000000000019884624838656}, None), ({"tokenizer_class": "NoSuchTokenizer"}, None),
    ({"added_tokens_decoder": {"0": "x"}}, "no tokenizer could be loaded"),
], ids=str)  # fmt: skip
def test_what_people_have_in_their_tokenizers_configuration(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], said: str | None
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    written = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in written.items() if v is not None}), encoding="utf-8")
    if said is not None:
        with pytest.raises(ModelError, match=said):
            load_tokenizer(folder, MODEL)
        return
    tokenizer = load_model(folder, MODEL).tokenizer
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved", MODEL)
    assert chat_format(again).turn_end == "<|im_end|>"
    assert None not in (again.eos_token_id, again.pad_token_id)


def test_content_in_parts_is_not_lost(tiny_model: Path, tmp_path: Path) -> None:
    parts = CHAT_TEMPLATE.replace(
        TEXT,
        "{% for part in message['content'] %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}",
    )
    tokenizer = load_tokenizer(with_template(tiny_model, tmp_path / "model", parts), MODEL)
    plain = load_tokenizer(tiny_model, MODEL)
    assert render_user_turn(tokenizer, "Hi there") == render_user_turn(plain, "Hi there")
    assert tokenize_exchange(tokenizer, "Hi there", "Well") == tokenize_exchange(plain, "Hi there", "Well")


# Templates that public reports tell of: with several delimiters, without an end of turns, with marks that are text.
REPORTED = {
    "[SYSTEM_PROMPT] and [INST], each with an end of its own (axolotl 2364)": (
        "<|im_start|>[SYSTEM_PROMPT]Be of use.[/SYSTEM_PROMPT]{% for m in messages %}{% if m.role == 'user' %}"
        "[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "[INST]p[/INST]",
        "<|im_end|>",
    ),
    "two tokens after a turn (axolotl 1921)": (
        CHAT_TEMPLATE.replace("<|im_end|>", "<|im_end|><|endoftext|>"),
        "<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "nothing after a reply (trl 1623)": (
        "{% for m in messages %}{{ '### Human: ' if m.role == 'user' else '### Assistant: ' }}{{ m.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}### Assistant: {% endif %}",
        "### Human: p\n### Assistant: ",
        "<|im_end|>",
    ),
    "a heading that is other tokens after a line break (textgen 3862)": (
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n{% else %}### Response:\n"
        "{{ m.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}",
        "### Response:\n",
        "<|im_end|>",
    ),
}


@pytest.mark.parametrize("report", REPORTED)
def test_templates_as_in_public_reports(tiny_model: Path, tmp_path: Path, report: str) -> None:
    template, header, end = REPORTED[report]
    tokenizer = load_tokenizer(with_template(tiny_model, tmp_path / "model", template), MODEL)
    prompt, reply = map(tokenizer.decode, tokenize_exchange(tokenizer, "p", "r"))
    assert prompt == render_user_turn(tokenizer, "p")
    assert prompt.endswith(header)
    assert reply == f"r{end}", "which is learned, and ends what is drawn"
    marks = {mark for mark in ("[INST]", "[/INST]", "### Response:", "### Assistant:") if mark in header}
    assert not any(mark in neutralise_special_tokens(f"a {mark} b", tokenizer) for mark in marks)


def test_of_several_templates_the_default_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, MODEL)
    plain = render_user_turn(tokenizer, "Hi")
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "tools"}
    assert render_user_turn(tokenizer, "Hi") == plain
    tokenizer.save_pretrained(tmp_path / "saved")
    assert render_user_turn(load_tokenizer(tmp_path / "saved", MODEL), "Hi") == plain
    tokenizer.chat_template = {"rag": CHAT_TEMPLATE, "tool_use": "tools"}
    assert "cannot be applied" in str(chat_format(tokenizer).obstacle)


def test_a_template_that_changes_is_tried_again(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, MODEL)
    assert chat_format(tokenizer).turn_end == "<|im_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_end|>", "<|endoftext|>")
    assert chat_format(tokenizer).turn_end == "<|endoftext|>"


TEMPLATE_PIECES = st.sampled_from([
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m.role }}", "{{ messages[0].content }}", "\n",
    "<|im_start|>", "<|im_end|>", "{% if add_generation_prompt %}", "{% endif %}", "assistant", "{{ bos_token }}", "{{",
    "{{ m.content[0] }}", "{{ 1 / 0 }}", "{{ m.content.split() }}", "{% set m = messages[-1] %}", "}}", "<think>",
    "<|channel|>final<|message|>", "{% if m.role == 'assistant' %}", "{% else %}",
])  # fmt: skip


@given(
    st.lists(TEMPLATE_PIECES, max_size=14).map("".join),
    st.sampled_from(["Qwen2.5", "GPT-OSS"]),
    st.sampled_from([None, True, False]),
)
@example(FAMILIES["GPT-OSS"].template, "GPT-OSS", None)
@example(FAMILIES["GPT-OSS"].template, "GPT-OSS", False)
@settings(max_examples=80)
def test_whatever_a_template_is_it_works_or_is_refused_in_a_sentence(
    template: str, name: str, enabled: bool | None
) -> None:
    tokenizer = family_tokenizer(FAMILIES[name])
    tokenizer.chat_template = template or " "
    found = chat_format(tokenizer, FAMILIES[name].thinking.model_copy(update={"enabled": enabled}))
    if found.obstacle is not None:
        assert "\n" not in found.obstacle
        return
    rendered = render_user_turn(tokenizer, "Is It 7?")
    assert "Is It 7?" in rendered and rendered.partition("Is It 7?")[2].strip()
    assert tokenizer.decode(tokenize_exchange(tokenizer, "Is It 7?", "It is.")[1]).startswith("It is.")


def test_weights_that_lack_the_templates_tokens_are_refused(tmp_path: Path) -> None:
    def add_marks(model: Any, tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
        tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|turn|>")

    folder = make_family(FAMILIES["Qwen2.5"], tmp_path / "model", add_marks)
    with pytest.raises(ModelError, match=r"writes '<\|turn\|>', which is token 268, and its weights know 268"):
        load_model(folder, MODEL)


def test_a_token_for_padding_that_the_weights_lack_is_replaced(tmp_path: Path) -> None:
    folder = make_family(
        FAMILIES["Llama 2"],
        tmp_path / "model",
        lambda _, tokenizer: tokenizer.add_special_tokens({"pad_token": "[PAD]"}),
    )
    loaded = load_model(folder, MODEL)
    assert load_tokenizer(folder, MODEL).pad_token == "[PAD]"
    assert loaded.tokenizer.pad_token == "</s>"


@pytest.mark.parametrize("mark", ["<|im_end|>", "<|tool|>", "<\uff5ctool\uff5c>"])
def test_marks_control_turns_also_where_they_are_not_declared_special(mark: str) -> None:
    family = FAMILIES["ChatML on a base model"]
    plain = replace(family, special=("<|endoftext|>",), added=("<|im_start|>", mark, *family.added))
    tokenizer = family_tokenizer(replace(plain, template=family.template.replace("<|im_end|>", mark)))
    assert mark not in neutralise_special_tokens(f"a {mark} b", tokenizer)
    assert "<|im_start|>" not in neutralise_special_tokens("a <|im_start|>", tokenizer)
    assert neutralise_special_tokens("<tool_call>", tokenizer) == "<tool_call>"
    tokenizer.chat_template = family.template
    assert mark not in neutralise_special_tokens(f"a {mark} b", tokenizer), "also where this template writes another"


def test_of_a_sentence_before_a_mark_the_mark_alone_is_broken_up_in_data(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model, MODEL)
    tokenizer.chat_template = (
        "A chat between a curious user and an assistant. {% for m in messages %}"
        "{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}<|im_end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    assert template_turn_marks(tokenizer) == ["ASSISTANT:", "USER:"]
    tokenizer.chat_template = "[INST] You are a helpful and honest model. " + tokenizer.chat_template
    assert template_turn_marks(tokenizer) == ["ASSISTANT:", "[INST]", "USER:"]


def test_tied_embeddings_that_grew_stay_tied_when_adapters_are_merged(tmp_path: Path) -> None:
    import torch

    from srlm_pipeline.config import LoraSettings, SftSettings
    from srlm_pipeline.models.checkpoint import save_checkpoint
    from srlm_pipeline.progress import NullProgress
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.sft import SftExample, train_sft

    def grow(model: Any, tokenizer: Any) -> None:
        tokenizer.add_tokens(["<plan>", "COVID"])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)

    folder = make_family(FAMILIES["Qwen2.5"], tmp_path / "model", grow)
    chosen = SftSettings(
        lora=LoraSettings(rank=2), learning_rate=1e-2, epochs=1, batch_size=1, micro_batch_size=1, max_length=200
    )
    job = TrainingJob(folder, MODEL, 1, tmp_path / "work", "sft", NullProgress())
    trained = train_sft(job, [SftExample("What is COVID?", "<plan> an illness")], chosen).loaded
    again = load_model(save_checkpoint(trained, tmp_path / "M1", "M1", None, {}, "float32").path, MODEL)
    assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
    assert len(again.model.lm_head.weight) == len(again.tokenizer) == 270
    ids = torch.tensor([tokenize_exchange(again.tokenizer, "What is COVID?", "<plan> an illness")[0]])
    assert again.tokenizer.convert_tokens_to_ids("COVID") in ids
    with torch.inference_mode():
        assert torch.equal(again.model(ids).logits, trained.model(ids).logits)


@pytest.mark.parametrize(("written", "kept"), [
    ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
    ({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}, {"do_sample": True}),
    ({"top_k": 20, "do_sample": False}, {"do_sample": True}),
    ({"length_penalty": 2.0, "temperature": 0.5}, {"length_penalty": None, "temperature": None}),
], ids=str)  # fmt: skip
def test_a_generation_config_that_could_not_be_saved_is_repaired_when_the_model_is_opened(
    tiny_model: Path, tmp_path: Path, written: dict[str, Any], kept: dict[str, Any]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **written}), encoding="utf-8")
    loaded = load_model(folder, MODEL)
    loaded.model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: saved.get(name) for name in kept} == kept
    ends = saved["eos_token_id"]
    assert loaded.tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
