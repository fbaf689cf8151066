"""What a chat template says before anybody has said anything, so that a model that says it again is noticed."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from srlm_pipeline.data.chat import template_system_prompt

SYSTEM = "You are a patient gardener.\nYou answer in rhymes."
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model)


def test_a_template_without_a_system_prompt_has_none(tokenizer: PreTrainedTokenizerBase) -> None:
    assert template_system_prompt(tokenizer) == ""
    tokenizer.chat_template = None
    assert template_system_prompt(tokenizer) == ""


def test_the_system_prompt_is_found_without_its_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{TURNS}"
    assert template_system_prompt(tokenizer) == SYSTEM


def test_only_what_comes_by_itself_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        f"{{% if messages[0]['role'] == 'system' %}}never said{{% else %}}<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"{{% endif %}}{TURNS}<|im_start|>assistant\nI begin like this"
    )
    assert template_system_prompt(tokenizer) == SYSTEM
