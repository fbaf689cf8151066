"""What makes the next model better or worse: ways to make M1, and ways to choose pairs and to train on them.

One set of scored candidates of one M1 serves all ways to choose, so that nothing but the recipe differs. Every model is
measured as the gate measures. What is finished stays in the work folder, and is not done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import SMOKE_RESULTS, Bench, Measurement, Series, options, parse
from benchmarks.core import score

if TYPE_CHECKING:
    import pandas as pd

    from srlm_pipeline.config import Settings
    from srlm_pipeline.models.checkpoint import Checkpoint
    from srlm_pipeline.store import ProjectStore

SMOKE = {"prompts": 2, "work": SMOKE_RESULTS / "recipes", "seeds": ["base, order balanced"], "ways": ["as scored"]}
_ORDER = {"length_balance": True, "score_weight": 0.0, "mismatched_negatives": 1, "corrupted_negatives": 1}
# M1: whether it comes from the base model or from SFT on the instruction data, and what it learns of judging.
SEEDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "base, order balanced": (False, _ORDER),
    "base, order balanced, 2e-4": (False, {**_ORDER, "learning_rate": 2e-4}),
    "base, order and scores": (False, dict.fromkeys(_ORDER, 0) | {"length_balance": False, "score_weight": 1.0}),
    "SFT, order balanced, 2e-4": (True, {**_ORDER, "learning_rate": 2e-4}),
}
_PLAIN, _FIT = {"unfit": "scored", "length_control": 0.0}, {"unfit": "rejected", "length_control": 0.0}
# What is chosen, and how it is trained on.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as scored": (_PLAIN, {}),
    "as scored, length control 0.4": ({**_PLAIN, "length_control": 0.4}, {}),
    "unfit rejected": (_FIT, {}),
    "unfit rejected, length control 0.4": ({**_FIT, "length_control": 0.4}, {}),
    "the same, upper half of the layers": ({**_FIT, "length_control": 0.4}, {"lora": {"top_layers": 0.5}}),
    "the same, likelihood 0.2": ({**_FIT, "length_control": 0.4}, {"nll_weight": 0.2}),
    "the same, 1e-4": ({**_FIT, "length_control": 0.4}, {"learning_rate": 1e-4}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, repetitions=1)
    parser.add_argument("--prompts", type=int, default=96, help="to be invented, with four candidates each")
    parser.add_argument("--seeds", nargs="+", default=list(SEEDS), help="ways to make M1; the first one goes on")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="ways to make M2")
    parser.add_argument("--work", type=Path, default=Path("build/recipes"), help="folder for all that is made")
    args = parse(parser, arguments, SMOKE)
    bench = Bench("recipes", "Recipes for M1 and M2", args)
    from srlm_pipeline.config import load_settings
    from srlm_pipeline.evaluation.measures import MEASURES, figure
    from srlm_pipeline.store import ProjectStore, open_store

    settings = load_settings(
        "quickstart",
        {
            "seed": args.seed,
            "model": {"device": args.device},
            "prompt_generation": {"count": args.prompts},
            "evaluation": {"verifiable": {"limit": 4 if args.smoke else None}},
            # A tiny model scores everything alike.
            "pairs": {"min_margin": 0.0} if args.smoke else {},
        }
        | ({"base_model": args.model} if args.model else {}),
    )
    store = ProjectStore(args.work, open_store(settings).shared)
    kitchen = Kitchen(settings, store)
    rows = []
    first: Checkpoint | None = None
    made = {"base model": kitchen.base}
    for name in args.seeds:
        made[name] = kitchen.seed(name)
        first = first or made[name]
    assert first is not None, "argparse asks for one"
    scored = kitchen.candidates(first)
    for name in args.ways:
        made[name] = kitchen.trained(name, first, scored)
    for name, checkpoint in made.items():
        found = kitchen.measured(checkpoint)
        values = [figure(found, measure, settings.evaluation.bootstrap_samples).value for measure in MEASURES]
        rows.append([name, *("" if value is None else f"{value:.3f}" for value in values)])
        bench.say(f"{name}: {dict(zip([m.name for m in MEASURES], rows[-1][1:], strict=True))}")
    unfit = (scored["signs"] != "").mean()
    bench.finish(
        [
            Measurement(
                "candidates", "% of the candidates are unfit", [100 * float(unfit)], note=f"{len(scored)} of them"
            )
        ],
        [],
        [f"The ways to make M2 start from '{args.seeds[0]}'. Shares and units are those of docs/evaluation.md."],
        Series(["model", *(measure.name.replace("_", " ") for measure in MEASURES)], rows),
    )


class Kitchen:
    """Makes what recipes say, in a folder; what is there is taken up.

    Args:
        settings: That all recipes share.
        store: Where everything is kept.
    """

    def __init__(self, settings: Settings, store: ProjectStore) -> None:
        from srlm_pipeline.commands.terminal import terminal_reporter
        from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies

        self._settings, self._store, self._progress = settings, store, terminal_reporter()
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

    def candidates(self, m1: Checkpoint) -> pd.DataFrame:
        """Return scored candidates of a model for invented prompts."""
        import pandas as pd

        from srlm_pipeline.checks.checkable import checks_of
        from srlm_pipeline.generation.candidates import write_candidates
        from srlm_pipeline.generation.opening import open_engine, release_engines
        from srlm_pipeline.prompting.creation import create_prompts
        from srlm_pipeline.prompting.evolution import Earlier
        from srlm_pipeline.prompting.few_shot import SeedPrompt

        path = self._store.root / f"scored-{m1.digest}-{self._settings.prompt_generation.count}.parquet"
        if path.is_file():
            return pd.read_parquet(path)
        settings = self._settings
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
        scored = score(engine, candidates, settings, "judging/iter_001", checks_of(made.prompts))
        release_engines()
        scored.to_parquet(path)
        return scored

    def trained(self, name: str, m1: Checkpoint, scored: pd.DataFrame) -> Checkpoint:
        """Make an M2."""
        from srlm_pipeline.config import load_settings
        from srlm_pipeline.preference.pairs import select
        from srlm_pipeline.training.common import TrainingJob
        from srlm_pipeline.training.dpo import preference_examples, train_dpo

        pairs, dpo = WAYS[name]
        least = self._settings.pairs.min_margin
        settings = load_settings("quickstart", {"pairs": {**pairs, "min_margin": least}, "dpo": dpo})
        examples = preference_examples(select(scored, settings.pairs).pairs)
        work, seed = self._store.root / "work" / name, self._settings.seed + 1
        job = TrainingJob(m1.path, self._settings.model, seed, work, name, self._progress)
        return self._kept(name, m1, lambda: train_dpo(job, examples, settings.dpo).loaded)

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
        saved = save_checkpoint(make(), target, name, parent.digest, {}, self._settings.model.save_dtype)
        shutil.rmtree(self._store.root / "work" / name, ignore_errors=True)
        return saved


if __name__ == "__main__":
    main()
