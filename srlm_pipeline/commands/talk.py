"""`srlm chat`: talk to a model, or to two of them side by side."""

from __future__ import annotations

import time

from rich.columns import Columns
from rich.panel import Panel
from rich.prompt import Prompt
from rich.text import Text

from srlm_pipeline.commands.terminal import console, without_controls
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.generation.engine import GenerationRequest, Sampling
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.store import ProjectStore, open_store

MOST_MODELS = 2


def talk(settings: Settings, names: list[str], temperature: float, max_new_tokens: int) -> None:
    """Answer line by line until an empty line or Ctrl-D; every message is a conversation of its own.

    Args:
        settings: The project.
        names: One or two model names; none: the newest.
        temperature: 0 is greedy.
        max_new_tokens: Longest reply.

    Raises:
        SrlmError: If a model does not exist, naming those that do.
    """
    store = open_store(settings)
    chosen = names or [store.available_models()[-1]]
    if len(chosen) > MOST_MODELS:
        raise SrlmError(f"at most {MOST_MODELS} models can be shown side by side, {len(chosen)} were named")
    engines = {name: _open(store, settings, name) for name in chosen}
    console.print(f"Talking to [bold]{' and '.join(chosen)}[/]; an empty line ends it.")
    sampling = Sampling(temperature, 0.9, max_new_tokens)
    while True:
        try:
            message = Prompt.ask("[cyan]you[/]", console=console).strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not message:
            break
        panels = []
        for name, engine in engines.items():
            request = GenerationRequest("chat", engine.render(message), time.time_ns() >> 8)
            with console.status(f"{name} is writing"):
                reply = engine.generate([request], sampling)[0]
            end = "" if reply.finish_reason == "stop" else " (cut off)"
            # Text, not a string: a reply with square brackets is no markup. Clean, so that its width is that of what
            # is seen.
            text = Text(without_controls(reply.text).strip())
            panels.append(Panel(text, title=name, subtitle=f"{reply.n_tokens} tokens{end}"))
        console.print(panels[0] if len(panels) == 1 else Columns(panels, equal=True, expand=True))


def _open(store: ProjectStore, settings: Settings, name: str) -> TransformersEngine:
    checkpoint = store.named_model(settings, name)
    # Whatever engine the settings name: for one reply at a time, of two models in turn, no server pays.
    loaded = load_model(checkpoint.path, settings.model)
    return TransformersEngine(loaded.model, loaded.tokenizer, checkpoint.digest, 1)
