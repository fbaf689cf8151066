"""What makes the next model better or worse: ways to make M1, and ways to choose pairs and to train on them.

One set of scored candidates of one M1 serves all ways to choose, so that nothing but the recipe differs. Every model is
measured as the gate measures. What is finished stays in the work folder, and is not done again.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import SMOKE_RESULTS, Bench, Measurement, Series, options, parse

if TYPE_CHECKING:
    import pandas as pd

    from srlm_pipeline.config import Settings
    from srlm_pipeline.models.checkpoint import Checkpoint
    from srlm_pipeline.store import ProjectStore

_ORDER = {"length_balance": True, "score_weight": 0.0, "mismatched_negatives": 1, "corrupted_negatives": 1}
# M1: whether it comes from the base model or from SFT on the instruction data, and what it learns of judging.
SEEDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "base, order balanced": (False, _ORDER),
    "base, order balanced, 2e-4": (False, {**_ORDER, "learning_rate": 2e-4}),
    "base, order balanced, retention 1": (False, {**_ORDER, "retention": 1.0}),
    "base, order balanced, retention 5": (False, {**_ORDER, "retention": 5.0}),
    "base, order and scores": (False, dict.fromkeys(_ORDER, 0) | {"length_balance": False, "score_weight": 1.0}),
    "SFT, order balanced, 2e-4": (True, {**_ORDER, "learning_rate": 2e-4}),
}
# From M1 to M2: what each way sets anew in the quickstart, as `srlm --set` takes it; "" is the quickstart itself.
WAYS = (
    "",
    "pairs.unfit=scored",
    "pairs.length_control=0.4",
    "dpo.lora.top_layers=1.0",
    "dpo.learning_rate=1e-4",
    "dpo.nll_weight=0.2",
    "dpo.loss=sigmoid_norm dpo.beta=5",
    "dpo.loss=robust dpo.label_smoothing=0.3",
    # In the first round M1 is the model that training starts from, and by that the reference.
    "dpo.reference=base",
    "dpo.rehearsal=0.5",
    "dpo.kl_budget=10",
    "dpo.interpolation=[0.25,0.5,0.75,1.0]",
    "candidates.per_prompt=8",
    "prompt_generation.evolution.constrain=0.8 judge.panel=[self,verifiers]",
)
SMOKE = {"prompts": 2, "work": SMOKE_RESULTS / "recipes", "seeds": ["base, order balanced"]}
# A tiny model writes little that is fit, and scores everything alike.
_OF_TINY_MODELS = ("evaluation.verifiable.limit=4", "pairs.min_margin=0", "pairs.unfit=scored")
_TOOK = "seconds"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    parser.add_argument("--prompts", type=int, default=96, help="to be invented, with four candidates each")
    parser.add_argument("--seeds", nargs="+", default=list(SEEDS), help="ways to make M1; the first one goes on")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="ways to make M2: settings, e.g. dpo.beta=0.2")
    parser.add_argument("--work", type=Path, default=Path("build/recipes"), help="folder for all that is made")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("recipes", "Recipes for M1 and M2", args)
    from srlm_pipeline.config.loading import load_settings, merge_overrides
    from srlm_pipeline.evaluation.measures import MEASURES, figure
    from srlm_pipeline.store import ProjectStore, open_store

    given = [f"seed={args.seed}", f"model.device={args.device}", f"prompt_generation.count={args.prompts}"]
    given += [f"base_model={args.model}"] if args.model else []
    given += _OF_TINY_MODELS if args.smoke else ["evaluation.verifiable.limit=null"]

    def recipe(way: str) -> Settings:
        return load_settings("quickstart", merge_overrides([*given, *way.split()]))

    settings = recipe("")
    kitchen = Kitchen(settings, ProjectStore(args.work, open_store(settings).shared), bench.say)
    rows: list[list[float | str]] = []

    def measured(name: str, checkpoint: Checkpoint, notes: Sequence[str] = ("", "", "")) -> None:
        found = kitchen.measured(checkpoint)
        values = [figure(found, measure, settings.evaluation.bootstrap_samples).value for measure in MEASURES]
        shown = ["" if value is None else f"{value:.3f}" for value in values]
        rows.append([name, *notes, *shown])
        bench.say(f"{name}: {dict(zip([m.name for m in MEASURES], shown, strict=True))}")

    measured("base model", kitchen.base)
    made = {name: kitchen.seed(name) for name in args.seeds}
    for name, seed_model in made.items():
        measured(name, seed_model)
    first = made[args.seeds[0]]
    for way in args.ways:
        name = way or "quickstart"
        measured(name, *kitchen.trained(name, first, recipe(way)))
    scored = kitchen.candidates(first, settings)
    unfit = (scored["signs"] != "").mean()
    bench.finish(
        [
            Measurement(
                "candidates", "% of the candidates are unfit", [100 * float(unfit)], note=f"{len(scored)} of them"
            )
        ],
        [],
        [f"The ways to make M2 start from '{args.seeds[0]}'. Shares and units are those of docs/evaluation.md."],
        Series(
            [
                "model",
                "pairs",
                "seconds for scored candidates",
                "seconds of DPO",
                *(measure.name.replace("_", " ") for measure in MEASURES),
            ],
            rows,
        ),
    )


class Kitchen:
    """Makes what recipes say, in a folder; what is there is taken up.

    Args:
        settings: That all recipes share.
        store: Where everything is kept.
        say: Where it is told how something was chosen.
    """

    def __init__(self, settings: Settings, store: ProjectStore, say: Callable[[str], None]) -> None:
        from srlm_pipeline.commands.terminal import terminal_reporter
        from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies

        self._settings, self._store, self._say, self._progress = settings, store, say, terminal_reporter()
        self.base = store.base_checkpoint(settings)
        self._ift = load_instructions(settings.data).table
        self._ranked = load_ranked_replies(settings.data).table
        self._prompts = load_evaluation_prompts(settings.data).table

    def seed(self, name: str) -> Checkpoint:
        """Make an M1."""
        from srlm_pipeline.judging.eft import eft_from_ranks
        from srlm_pipeline.judging.negatives import with_negatives
        from srlm_pipeline.training.common import TrainingJob
        from srlm_pipeline.training.seed import train_seed_model
        from srlm_pipeline.training.sft import SftExample, train_sft

        from_sft, changes = SEEDS[name]
        settings = self._settings.model_copy(update={"eft": self._settings.eft.model_copy(update=changes)})
        model, seed, work = settings.model, settings.seed, self._store.root / "work"
        source = self.base
        if from_sft:
            examples = [SftExample(row.prompt, row.response) for row in self._ift.itertuples()]
            job = TrainingJob(self.base.path, model, seed, work / "sft", "SFT", self._progress)
            source = self._kept("SFT", self.base, lambda: train_sft(job, examples, settings.sft).loaded)
        negatives = settings.eft.mismatched_negatives, settings.eft.corrupted_negatives
        train = self._ranked[self._ranked["split"] == "train"]
        eft = with_negatives(eft_from_ranks(train), *negatives, settings.seed).table
        job = TrainingJob(source.path, model, seed, work / name, name, self._progress)
        return self._kept(
            name,
            source,
            lambda: train_seed_model(job, self._ift, eft, settings, sft_baseline=source.path).final.loaded,
        )

    def candidates(self, m1: Checkpoint, settings: Settings) -> pd.DataFrame:
        """Return scored candidates of a model for new prompts."""
        import pandas as pd

        from srlm_pipeline.checks.checkable import checks_of
        from srlm_pipeline.evaluation.opening import open_judge
        from srlm_pipeline.generation.candidates import write_candidates
        from srlm_pipeline.generation.opening import open_engine, release_engines
        from srlm_pipeline.judging.scoring import score_candidates
        from srlm_pipeline.prompting.creation import create_prompts
        from srlm_pipeline.prompting.evolution import Earlier
        from srlm_pipeline.prompting.few_shot import SeedPrompt

        decides = settings.model_dump_json(include={"seed", "prompt_generation", "candidates", "judge"})
        path = self._store.root / f"scored-{m1.digest}-{sha256(decides.encode()).hexdigest()[:12]}.parquet"
        if path.is_file():
            return pd.read_parquet(path)
        started = time.perf_counter()
        made = create_prompts(
            open_engine(self.base, settings, settings.prompt_generation.batch_size),
            [SeedPrompt(str(row.id), str(row.prompt)) for row in self._ift.itertuples()],
            Earlier(),
            list(self._prompts["prompt"]),
            settings.prompt_generation,
            settings.seed,
            "prompts/iter_001",
            self._progress,
        )
        prompts = [(str(row.prompt_id), str(row.prompt)) for row in made.prompts.itertuples()]
        engine = open_engine(m1, settings, settings.candidates.batch_size)
        candidates = write_candidates(
            engine, prompts, settings.candidates, settings.seed, "candidates/iter_001", self._progress
        )
        judge = open_judge(
            settings,
            self._store,
            lambda model, batch_size: open_engine(model, settings, batch_size),
            m1,
            "judging/iter_001",
            checks_of(made.prompts),
        )
        scored = score_candidates(judge, candidates, self._progress)
        release_engines()
        scored.attrs[_TOOK] = time.perf_counter() - started
        scored.to_parquet(path)
        return scored

    def trained(self, name: str, m1: Checkpoint, settings: Settings) -> tuple[Checkpoint, tuple[str, str, str]]:
        """Make an M2, and say: from how many pairs, the seconds that candidates took, and training."""
        from srlm_pipeline.preference.pairs import select
        from srlm_pipeline.training.common import TrainingJob, TrainingRun
        from srlm_pipeline.training.dpo import preference_examples, train_dpo
        from srlm_pipeline.training.human_pairs import rehearsed_pairs
        from srlm_pipeline.training.interpolation import train_and_interpolate

        scored = self.candidates(m1, settings)
        own = preference_examples(select(scored, settings.pairs).pairs)
        folder, seed = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-"), settings.seed + 1
        train = self._ranked[self._ranked["split"] == "train"]
        examples = [*own, *rehearsed_pairs(train, len(own), settings.dpo.rehearsal, seed)]
        job = TrainingJob(m1.path, settings.model, seed, self._store.root / "work" / folder, name, self._progress)

        def trained() -> TrainingRun:
            reference = self.base.path if settings.dpo.reference == "base" else None
            return train_dpo(job, examples, settings.dpo, reference=reference)

        def made() -> TrainingRun:
            if not settings.dpo.interpolation:
                return trained()
            run, tried = train_and_interpolate(job, m1, settings.dpo, trained, self._on_development)
            for one in tried:
                self._say(f"{name}: {one}")
            return run

        checkpoint = self._kept(folder, m1, lambda: made().loaded)
        return checkpoint, (str(len(examples)), f"{scored.attrs[_TOOK]:.0f}", f"{checkpoint.lineage['seconds']:.0f}")

    def _on_development(self, checkpoint: Checkpoint) -> Any:
        from srlm_pipeline.evaluation.development import development_figures
        from srlm_pipeline.generation.opening import open_engine

        settings = self._settings
        return development_figures(
            checkpoint,
            self._ranked[self._ranked["split"] == "held_out"],
            settings,
            self._store,
            lambda model, batch_size: open_engine(model, settings, batch_size),
            self._progress,
            "development",
        )

    def measured(self, checkpoint: Checkpoint) -> Any:
        """Return what is known of a model."""
        from srlm_pipeline.evaluation.assessing import assess_and_keep
        from srlm_pipeline.evaluation.assessment import open_assessment
        from srlm_pipeline.generation.opening import open_engine, release_engines

        folder = self._store.assessment_folder(checkpoint)
        if folder.is_dir():
            return open_assessment(folder)
        settings = self._settings
        found = assess_and_keep(
            checkpoint,
            self._prompts,
            self._ranked,
            settings,
            self._store,
            lambda model, batch_size: open_engine(model, settings, batch_size),
            self._progress,
        )
        release_engines()
        return found

    def _kept(self, name: str, parent: Checkpoint, make: Any) -> Checkpoint:
        from srlm_pipeline.models.checkpoint import is_checkpoint, read_checkpoint, save_checkpoint

        target = self._store.model_folder(name)
        if is_checkpoint(target) and (known := read_checkpoint(target)).parent == parent.digest:
            return known
        started = time.perf_counter()
        made = make()
        lineage = {"seconds": time.perf_counter() - started}
        saved = save_checkpoint(made, target, name, parent.digest, lineage, self._settings.model.save_dtype)
        shutil.rmtree(self._store.root / "work" / name, ignore_errors=True)
        return saved


if __name__ == "__main__":
    main()
