"""The pipeline on a GPU in one command of at most eight minutes, needing little more than torch and transformers.

    python -m benchmarks.gpu                    # on a GPU; --part conformance, --shape 1.5B, ...
    python -m benchmarks.gpu --smoke            # on a CPU, in seconds: shows that it runs, measures nothing

Models are random, of the shape of models that exist, so that nothing has to be brought. Parts whose libraries are not
there are left out, and it is said which ones those are; docs/performance.md says how to carry them along. The result
is a JSON file and a table beside it, and is printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import (
    RESULTS,
    SMOKE_RESULTS,
    StepClock,
    commit,
    describe_device,
    describe_limits,
    fresh_engine,
    measure_limits,
    timed,
)
from benchmarks.work import ModelSize

if TYPE_CHECKING:
    from srlm_pipeline.config import DpoSettings, ModelSettings, SftSettings
    from srlm_pipeline.models.loading import LoadedModel

# Widths of Qwen2.5-0.5B and -1.5B, and of one for trials: hidden, intermediate, layers, heads, key heads, vocabulary.
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936),
    "1.5B": (1536, 8960, 28, 12, 2, 151_936),
    "tiny": (64, 128, 2, 4, 2, 512),
}
PARTS = ("conformance", "stages", "training", "sharding")
TRAINING_LIBRARIES = ("trl", "peft", "datasets", "accelerate", "pandas")
# One line a turn, so that its tokens are those of the text and of nothing else.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOKE = {"shape": "tiny", "device": "cpu", "texts": 4, "prompts": 4, "new_tokens": 4, "tokens": 64, "batch": 2}


@dataclass
class Result:
    """What was found.

    Attributes:
        figures: One row each: part, what, value, unit, and the share of the device's limit where that means something.
        checks: One row each: what must hold, and whether it does.
        left_out: Parts that could not be done, with the reason.
    """

    figures: list[tuple[str, str, float, str, float | None]] = field(default_factory=list)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def figure(self, part: str, what: str, value: float, unit: str, share: float | None = None) -> None:
        """Keep and print a figure."""
        self.figures.append((part, what, value, unit, share))
        say(f"{part}: {what}: {value:,.4g} {unit}" + (f" ({share:.0%} of the limit)" if share is not None else ""))

    def check(self, what: str, holds: bool, note: str = "") -> None:
        """Keep and print whether something holds."""
        self.checks.append((what, holds, note))
        say(f"{'ok ' if holds else 'NOT'} {what}{f' ({note})' if note else ''}")

    def markdown(self) -> str:
        """Return the tables for docs/performance.md."""
        lines = ["| | what | value | share of the limit |", "| --- | --- | --- | --- |"]
        for part, what, value, unit, share in self.figures:
            lines.append(f"| {part} | {what} | {value:,.4g} {unit} | {'' if share is None else f'{share:.0%}'} |")
        lines += ["", "| holds | |", "| --- | --- |"]
        lines += [f"| {what} | {'yes' if holds else '**no**'} {note} |" for what, holds, note in self.checks]
        lines += ["", *(f"Left out: {part} ({reason})." for part, reason in self.left_out.items())]
        return "\n".join(lines).strip() + "\n"


@dataclass(frozen=True)
class Scene:
    """What all parts work with.

    Attributes:
        args: Options.
        folder: For models and trainings.
        result: To be filled.
    """

    args: argparse.Namespace
    folder: Path
    result: Result

    @property
    def device(self) -> str:
        """As torch names it."""
        return str(self.args.device)

    def model(self, **more: Any) -> ModelSettings:
        """Return how models are loaded here."""
        from srlm_pipeline.config import ModelSettings

        return ModelSettings(device=self.device, **more)

    def shaped(self) -> Path:
        """Return the folder of the model that is measured."""
        folder = self.folder / self.args.shape
        if not folder.is_dir():
            write_model(folder, *SHAPES[self.args.shape])
        return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all parts for which there is time; returns 0 where every check holds."""
    args = _options().parse_args(arguments)
    if args.smoke:
        vars(args).update(SMOKE)
    started = time.monotonic()
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch sees no CUDA device here; try --smoke, or --device cpu", file=sys.stderr)
        return 2
    result = Result()
    with tempfile.TemporaryDirectory(prefix="srlm-gpu-") as folder:
        scene = Scene(args, Path(folder), result)
        for part in args.part or PARTS:
            left = args.seconds - (time.monotonic() - started)
            if left < args.seconds / 8:
                result.left_out[part] = f"{left:.0f} of {args.seconds} seconds were left"
                continue
            _do(part, scene)
    written = write(result, args, time.monotonic() - started)
    print(f"\n{result.markdown()}\nwritten to {written}")
    return 0 if all(holds for _, holds, _ in result.checks) else 1


def write(result: Result, args: argparse.Namespace, seconds: float) -> Path:
    """Write the result as JSON and as a table beside it, and return the former's path.

    The environment variable OUT, or else the folder of results, says where; trials go where they are not taken for
    measurements.
    """
    import torch

    folder = SMOKE_RESULTS if args.smoke else Path(os.environ.get("OUT") or RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("torch", "transformers", *TRAINING_LIBRARIES, "bitsandbytes")
    content = {
        "name": "gpu",
        "smoke": args.smoke,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "device": describe_device(args.device),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)},
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "seconds": seconds,
        **asdict(result),
    }
    path = folder / "gpu.json"
    for target, text in ((path, json.dumps(content, indent=1)), (folder / "gpu.md", result.markdown())):
        temporary = target.with_suffix(target.suffix + ".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    return path


def conformance(scene: Scene) -> None:
    """The engine writes and reads on the device as on a CPU, whatever stands beside a text in its batch."""
    from srlm_pipeline.config import ModelSettings
    from srlm_pipeline.generation.engine import GenerationRequest, Sampling
    from srlm_pipeline.models.loading import load_model

    folder = scene.folder / "small"
    write_model(folder, *SHAPES["tiny"])
    reference, ours = (
        load_model(folder, ModelSettings(device=device, dtype="float32")) for device in ("cpu", scene.device)
    )
    beginning = "Every one of these begins alike, and goes on for long enough to be read once. " * 4
    texts = [f"say {'word ' * n}" for n in (1, 3, 8, 20, 50)] + [f"{beginning}{n}" for n in range(4)]
    greedy = Sampling(0.0, 1.0, 24)

    def written(loaded: LoadedModel, batch: int, chosen: Sequence[str]) -> list[str]:
        engine = fresh_engine(loaded, batch)
        requests = [GenerationRequest(str(n), engine.render(text), n) for n, text in enumerate(chosen)]
        return [completion.text for completion in engine.generate(requests, greedy)]

    def read(loaded: LoadedModel, batch: int) -> Any:
        engine = fresh_engine(loaded, batch)
        return engine.next_token_distribution([engine.render(text, "Score: ") for text in texts], list("012345"))

    expected = written(reference, 1, texts)
    for batch in (1, 2, len(texts)):
        got = written(ours, batch, texts)
        same = sum(one == other for one, other in zip(expected, got, strict=True))
        scene.result.check(
            f"greedy replies are the CPU's, {batch} at a time", same == len(texts), f"{same} of {len(texts)}"
        )
    expected_odds = read(reference, 1)
    for batch in (1, len(texts)):
        off = float(abs(read(ours, batch) - expected_odds).max())
        scene.result.check(f"probabilities are the CPU's, {batch} at a time", off < 1e-4, f"at most {off:.1e} apart")
    whole, sampled = Sampling(1.0, 0.9, 24), fresh_engine(ours, len(texts))
    requests = [GenerationRequest(str(n), sampled.render(text), n) for n, text in enumerate(texts)]
    twice = [[c.text for c in sampled.generate(requests, whole)] for _ in range(2)]
    scene.result.check("drawn replies come out again", twice[0] == twice[1])


def stages(scene: Scene) -> None:
    """What takes most of an iteration, reading and writing, against the device's limits."""
    from srlm_pipeline.generation.engine import GenerationRequest, Sampling
    from srlm_pipeline.models.loading import load_model

    args = scene.args
    limits = measure_limits(scene.device, 0.05 if args.smoke else 1.0)
    say(f"the device: {describe_limits(limits)}")
    scene.result.figure("limits", "matrix products in bfloat16", limits.bf16_flops / 1e12, "TFLOP/s")
    scene.result.figure("limits", "memory", limits.bandwidth / 1e9, "GB/s")
    loaded, seconds = timed(lambda: load_model(scene.shaped(), scene.model()), scene.device)
    scene.result.figure("stages", f"opening {args.shape}", seconds, "s")
    size, engine = ModelSize.of(loaded.model), fresh_engine(loaded, args.batch)

    def tokens(text: str) -> int:
        return len(loaded.tokenizer(text, add_special_tokens=False).input_ids)

    # A different beginning each, or most would be read once for all.
    questions = [
        engine.render(f"{n} {'judge this reply ' * (args.tokens // 17)}", "Score: ") for n in range(args.texts)
    ]
    engine.next_token_distribution(questions[:2], ["0", "1"])
    with peak_memory(scene, "stages", "reading"):
        _, seconds = timed(lambda: engine.next_token_distribution(questions, ["0", "1"]), scene.device)
    n = sum(map(tokens, questions))
    least = limits.seconds(size.forward_flops(n, len(questions)))
    scene.result.figure("stages", f"reading, {args.batch} at a time", n / seconds, "tokens/s", least / seconds)
    requests = [GenerationRequest(str(n), engine.render(f"{n} write"), n) for n in range(args.prompts)]
    sampling = Sampling(1.0, 1.0, args.new_tokens)
    engine.generate(requests[:2], Sampling(1.0, 1.0, 2))
    with peak_memory(scene, "stages", "writing"):
        replies, seconds = timed(lambda: engine.generate(requests, sampling), scene.device)
    rows = [(tokens(r.prompt), c.n_tokens) for r, c in zip(requests, replies, strict=True)]
    written = sum(new for _, new in rows)
    least = size.writing_seconds(rows, sum(known for known, _ in rows), args.batch, limits)
    scene.result.figure("stages", f"writing, {args.batch} at a time", written / seconds, "tokens/s", least / seconds)


def training(scene: Scene) -> None:
    """SFT and DPO steps by the real trainers: rate, memory against the plan's formula, and too little memory."""
    missing = [name for name in TRAINING_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        scene.result.left_out["training"] = f"not installed here: {', '.join(missing)}"
        return
    for method in ("lora", "full"):
        for again in (True, False):
            _train(scene, "sft", method, again)
        _train(scene, "dpo", method, True)
    if scene.device.startswith("cuda"):
        _run_out(scene)


def _train(scene: Scene, trainer: str, method: str, again: bool) -> None:
    from srlm_pipeline.training.dpo import train_dpo
    from srlm_pipeline.training.sft import train_sft

    args, clock = scene.args, StepClock()
    sft, dpo = _settings(args, method=method, gradient_checkpointing=again, micro_batch_size=args.batch)
    named = f"{trainer.upper()}, {method}, activations {'anew' if again else 'kept'}"
    with peak_memory(scene, "training", named) as peak:
        if trainer == "sft":
            train_sft(_job(scene, named, clock), _examples(args), sft)
        else:
            train_dpo(_job(scene, named, clock), _pairs(args), dpo)
    per_step = args.batch * args.tokens * (2 if trainer == "dpo" else 1)
    rate = per_step / clock.step_seconds(1)
    scene.result.figure("training", named, rate, "tokens/s")
    if peak:
        planned = _planned_memory(scene, sft if trainer == "sft" else dpo, per_step)
        scene.result.figure("training", f"{named}: memory against the plan's", peak[0] / planned, "x")


def _run_out(scene: Scene) -> None:
    """Let a real device run out of a share of its memory: the micro-batch is halved, and training ends well."""
    import torch

    from srlm_pipeline.training.sft import train_sft

    sft, _ = _settings(scene.args, method="lora", micro_batch_size="auto")
    whole = scene.args.batch * scene.args.tokens
    room = 0.6 * _planned_memory(scene, sft, whole)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.get_device_properties(0).total_memory))
    try:
        run = train_sft(_job(scene, "auto", StepClock()), _examples(scene.args), sft)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    scene.result.check("micro_batch_size: auto finds what fits", run.final("train_loss") is not None)


def sharding(scene: Scene) -> None:
    """`fully_shard` on one rank steps as the plain model does: what FSDP2 rests on works here."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    folder = scene.folder / "small"
    if not folder.is_dir():
        write_model(folder, *SHAPES["tiny"])
    kind = scene.device.partition(":")[0]
    ids = torch.arange(48, device=scene.device).reshape(2, 24) % 256
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", init_method=f"file://{scene.folder / 'meeting'}", rank=0, world_size=1
    )
    try:
        losses = []
        for sharded in (False, True):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(scene.device).train()
            if sharded:
                mesh = init_device_mesh(kind, (1,))
                for layer in model.model.layers:
                    fully_shard(layer, mesh=mesh)
                fully_shard(model, mesh=mesh)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for _ in range(3):
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    finally:
        dist.destroy_process_group()
    off = abs(losses[0] - losses[1])
    scene.result.check("FSDP2 on one rank steps as the plain model does", off < 1e-4, f"losses {off:.1e} apart")


def write_model(
    folder: Path, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> None:
    """Save a random Llama of a shape, with a tokenizer of which every byte is a token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({token: place for place, token in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=4096)
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Wide enough for the likeliest token to be well ahead: greedy replies then differ for a reason.
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16 if layers > 2 else torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def peak_memory(scene: Scene, part: str, what: str) -> Iterator[list[float]]:
    """Keep the most memory that a block takes on a GPU; the list that is yielded then holds it, in bytes."""
    peak: list[float] = []
    if not scene.device.startswith("cuda"):
        yield peak
        return
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield peak
    peak.append(float(torch.cuda.max_memory_allocated()))
    scene.result.figure(part, f"{what}: memory at the peak", peak[0] / 2**30, "GiB")


def say(text: str) -> None:
    """Print a line at once."""
    print(f"[gpu] {text}", flush=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="0.5B", help="of the model that is measured")
    parser.add_argument("--part", action="append", choices=PARTS, help="this one alone; may be repeated")
    parser.add_argument("--seconds", type=float, default=480, help="no part begins when an eighth of them is left")
    parser.add_argument("--texts", type=int, default=256, help="that are read")
    parser.add_argument("--prompts", type=int, default=128, help="that are answered")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a reply, at most")
    parser.add_argument("--tokens", type=int, default=512, help="of a text that is read or learned")
    parser.add_argument("--batch", type=int, default=32, help="texts at a time")
    parser.add_argument("--steps", type=int, default=6, help="of each training")
    return parser


def _do(part: str, scene: Scene) -> None:
    """Do one part; one that fails is a finding, and the others are done all the same."""
    parts: dict[str, Callable[[Scene], None]] = {
        "conformance": conformance,
        "stages": stages,
        "training": training,
        "sharding": sharding,
    }
    say(part)
    try:
        parts[part](scene)
    except Exception as error:
        traceback.print_exc()
        scene.result.check(f"{part} comes to its end", holds=False, note=f"{type(error).__name__}: {error}"[:300])


def _settings(args: argparse.Namespace, **more: Any) -> tuple[SftSettings, DpoSettings]:
    from srlm_pipeline.config import DpoSettings, LoraSettings, SftSettings

    common = {
        "lora": LoraSettings(rank=16, alpha=32, top_layers=1.0),
        "batch_size": args.batch,
        "max_length": args.tokens,
        "warmup_ratio": 0.0,
        "save_every": 10**6,
        **more,
    }
    return SftSettings(**common), DpoSettings(**common)


def _job(scene: Scene, name: str, clock: StepClock) -> Any:
    from srlm_pipeline.training.common import TrainingJob

    work = scene.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    return TrainingJob(scene.shaped(), scene.model(), 1, work, name, clock)


def _examples(args: argparse.Namespace) -> list[Any]:
    from srlm_pipeline.training.sft import SftExample

    # Longer than what they are cut to, so that none is padded.
    return [SftExample(f"{n}", "a reply " * args.tokens) for n in range(args.batch * args.steps)]


def _pairs(args: argparse.Namespace) -> list[Any]:
    from srlm_pipeline.training.dpo import PreferenceExample

    n_pairs = args.batch * args.steps
    return [PreferenceExample(f"{n}", "better " * args.tokens, "worse " * args.tokens) for n in range(n_pairs)]


def _planned_memory(scene: Scene, settings: Any, tokens: int) -> float:
    """Return the bytes that `srlm plan` would say."""
    from srlm_pipeline.planning.sharding import ModelShape, rank_memory

    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[scene.args.shape]
    width = hidden // heads * kv_heads
    attention = 2 * hidden * (hidden + width)
    parameters = layers * (attention + 3 * hidden * intermediate) + vocabulary * hidden
    shape = ModelShape(parameters, layers, hidden, width, vocabulary)
    return rank_memory(shape, settings, checkpointing=settings.gradient_checkpointing is not False).total(tokens)


if __name__ == "__main__":
    sys.exit(main())
