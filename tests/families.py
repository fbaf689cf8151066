"""Tiny random models in the shape of well-known families: their architecture, control tokens and manner of templating.

The templates are short ones with the families' tokens and conventions, not the vendors' files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_pipeline.config import ThinkingSettings
from srlm_pipeline.models.chat_format import chat_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 512
# Pairs that byte-level tokenizers merge, so that one text can be written as different tokens.
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("\u0120", "t"), ("e", "r"), ("t", "h"), ("i", "n")]


@dataclass(frozen=True)
class Family:
    """How a family of models is built.

    Attributes:
        template: Of chats, as Jinja.
        special: Control tokens of the tokenizer.
        config: Name of the configuration's class in transformers.
        bos: Beginning of a text; blank for none.
        eos: The tokenizer's end token.
        pad: Token for padding; blank for none.
        turn_end: What ends an assistant's turn.
        added: Further tokens that control nothing.
        pieces: Whether texts are cut into pieces that begin with a mark for a blank, as SentencePiece does.
        tied: Whether input and output embeddings are one matrix.
        generation: What its generation_config.json says beside the end tokens.
        more: Further arguments of the configuration.
        thinking: What `model.thinking` has to say of it.
    """

    template: str
    special: tuple[str, ...]
    config: str = "LlamaConfig"
    bos: str = ""
    eos: str = ""
    pad: str = ""
    turn_end: str = ""
    added: tuple[str, ...] = ()
    pieces: bool = False
    tied: bool = False
    generation: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    thinking: ThinkingSettings = field(default_factory=lambda: ThinkingSettings(max_new_tokens=8))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful model made by a company of some "
    f"sort.<|im_end|>\n{{% endif %}}{CHATML}"
)
# The older of two ways: thoughts stand in the last turn only, and an empty one says that none is wanted.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') "
    "if '</think>' in m.content else '' }}\n</think>\n\n{% endif %}{{ said }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SMOLLM3 = (
    "{% set thinking = enable_thinking if enable_thinking is defined else true %}<|im_start|>system\n## Metadata\n\n"
    "Today Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ '/think' if thinking else '/no_think' }}\n\n"
    "You are a helpful model that was trained by somebody.<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{{ m.content if thinking else '<think>\n\n</think>\n' + m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' if thinking else '<think>\n\n</think>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
    "{{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}"
    "{% endif %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}"
    "<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
# Thoughts and replies are messages in channels, whose headers the model writes.
GPT_OSS = (
    "<|start|>system<|message|>You are a model of some sort.\nCurrent date: {{ strftime_now('%Y-%m-%d') }}\n\n"
    "# Valid channels: analysis, commentary, final.<|end|>{% for m in messages %}"
    "{% if '<|channel|>final<|message|>' in m.content %}{{ raise_exception('Pass channels apart') }}{% endif %}"
    "{% if m.role == 'assistant' %}{% if m.thinking is defined and loop.last %}<|start|>assistant<|channel|>analysis"
    "<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
CHANNELS = ThinkingSettings(
    start="<|channel|>analysis<|message|>", end="<|channel|>final<|message|>", max_new_tokens=16
)
THOUGHTS = ("<think>", "</think>")
TOOLS = ("<tool_call>", "</tool_call>")
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# What Qwen publishes, and what transformers refuses to save once anything in it was changed.
SAMPLED = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}

FAMILIES: dict[str, Family] = {
    "Llama 2": Family(
        LLAMA2, ("<unk>", "<s>", "</s>"), bos="<s>", eos="</s>", turn_end="</s>", pieces=True,
        generation={"temperature": 0.6, "top_p": 0.9},
    ),
    "Llama 3": Family(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", eos="<|end_of_text|>", turn_end="<|eot_id|>", tied=True, generation=SAMPLED,
    ),
    "Qwen2.5": Family(
        SYSTEM_CHATML, _CHATML_TOKENS, "Qwen2Config", eos="<|im_end|>", pad="<|endoftext|>", turn_end="<|im_end|>",
        added=TOOLS, tied=True, generation={**SAMPLED, "do_sample": True},
    ),
    "Qwen3": Family(
        QWEN3, _CHATML_TOKENS, "Qwen3Config", eos="<|im_end|>", pad="<|endoftext|>", turn_end="<|im_end|>",
        added=(*TOOLS, *THOUGHTS), tied=True, more={"head_dim": 8},
    ),
    "Gemma": Family(
        GEMMA, ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), "GemmaConfig", bos="<bos>",
        eos="<eos>", pad="<pad>", turn_end="<end_of_turn>", added=("<table>", "<s>", "<b>"), pieces=True, tied=True,
        more={"head_dim": 8},
    ),
    "Mistral": Family(
        MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "MistralConfig", bos="<s>", eos="</s>", turn_end="</s>",
        pieces=True,
    ),
    "Phi-3": Family(
        PHI3, ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "Phi3Config",
        eos="<|endoftext|>", pad="<|endoftext|>", turn_end="<|end|>", more={"pad_token_id": 0},
    ),
    "DeepSeek-R1": Family(
        DEEPSEEK_R1,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"), "Qwen2Config",
        bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>", turn_end="<｜end▁of▁sentence｜>", added=THOUGHTS,
        generation={"temperature": 0.6, "top_p": 0.95},
    ),
    "SmolLM2": Family(
        SYSTEM_CHATML, (*_CHATML_TOKENS, "<filename>"), bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>",
        turn_end="<|im_end|>", tied=True,
    ),
    "SmolLM3": Family(
        SMOLLM3, ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"), "SmolLM3Config",
        bos="", eos="<|im_end|>", pad="<|end_of_text|>", turn_end="<|im_end|>", added=THOUGHTS, tied=True,
        more={"no_rope_layers": [1, 0], "pad_token_id": 1},
    ),
    "GPT-OSS": Family(
        GPT_OSS,
        ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"),
        "GptOssConfig", bos="<|startoftext|>", eos="<|return|>", pad="<|endoftext|>", turn_end="<|return|>",
        more={"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "sliding_window": 32},
        thinking=CHANNELS,
    ),
    "ChatML on a base model": Family(
        CHATML, _CHATML_TOKENS, "Qwen2Config", eos="<|endoftext|>", pad="<|endoftext|>", turn_end="<|im_end|>",
        added=TOOLS, tied=True,
    ),
}  # fmt: skip


def family_tokenizer(family: Family) -> PreTrainedTokenizerBase:
    """Return a tokenizer of single bytes or characters, with some merges, and the family's tokens and template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if family.pieces:
        vocabulary = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *map(chr, range(33, 127)), "\u2581t", "he"]
        merges = [("\u2581", "t"), ("h", "e")]
        known = {token: place for place, token in enumerate([*family.special, *vocabulary])}
        core = Tokenizer(models.BPE(known, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        core.normalizer = normalizers.Replace(" ", "\u2581")
        core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
        known = {token: place for place, token in enumerate([*family.special, *vocabulary])}
        core = Tokenizer(models.BPE(known, MERGES))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.added])
    roles = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{name: t for name, t in roles.items() if t})
    if family.bos and family.bos != "<|im_start|>":
        # As the vendors do: a text that has no beginning gets one, and one from a template gets a second.
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, core.token_to_id(family.bos))]
        )
        tokenizer._tokenizer.post_processor = core.post_processor
    tokenizer.chat_template = family.template
    # Whoever asks later how it is used is told the same.
    chat_format(tokenizer, family.thinking)
    return tokenizer


def make_family(family: Family, folder: Path, change: Callable[[Any, Any], None] = lambda *_: None) -> Path:
    """Write a model of the family into a folder, as its vendor would publish it.

    Args:
        family: How it is built.
        folder: Where.
        change: Is given model and tokenizer before they are written.
    """
    import json

    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    tokenizer = family_tokenizer(family)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": WINDOW,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": family.tied,
    }  # fmt: skip
    config = getattr(transformers, family.config)(**{**sizes, **family.more})
    model = AutoModelForCausalLM.from_config(config)
    change(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    written = {"eos_token_id": tokenizer.eos_token_id, **family.generation}
    (folder / "generation_config.json").write_text(json.dumps(written), encoding="utf-8")
    return folder
