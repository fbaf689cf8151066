"""What measuring reads: the same settings and files wherever models are assessed, or replies are compared."""

from srlm_pipeline.assets.stage import Stage
from srlm_pipeline.checks.verifiable import verifiable_digest
from srlm_pipeline.config import PROGRAMS, VERIFIERS, Settings
from srlm_pipeline.evaluation.forbidden import forbidden_digests
from srlm_pipeline.evaluation.independence import SELF
from srlm_pipeline.evaluation.opening import REFERENCE
from srlm_pipeline.generation.calls import CallLog, call_figures
from srlm_pipeline.store import model_contents


class ExternalCalls:
    """The calls of external judges that an asset makes from here on.

    Args:
        stage: Of the asset.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage, self._log = stage, CallLog(stage.store.calls_path)
        self._start = self._log.size()

    def told(self) -> dict[str, float]:
        """Show them in MLflow, and return their figures for the metadata; nothing if there were none."""
        calls = self._log.table(self._start)
        figures = {f"calls/{name}": value for name, value in call_figures(calls).items()}
        if figures:
            self._stage.run.table(calls, "judge_calls.json")
            self._stage.run.metrics(figures)
        return figures


# What a model is asked, and how it judges.
ASSESSED = (
    "evaluation.max_new_tokens",
    "evaluation.verifiable",
    "evaluation.closed_tasks",
    "evaluation.encoder",
    "evaluation.bootstrap_samples",
    "judge",
    "model.thinking",
    "seed",
)


def assessed_contents(settings: Settings) -> list[str]:
    """Return digests of the sets that models are asked from, so that an edited file makes stale what came of it."""
    # The same as those whose prompts must not be invented.
    return list(forbidden_digests(settings.evaluation))


def arbiters_read(settings: Settings) -> tuple[str, ...]:
    """Return the settings that decide who wins a match."""
    models = {arbiter.model for arbiter in settings.evaluation.arbiters}
    read = ["evaluation.arbiters", "evaluation.tie_margin", "judge.rubric", "model.thinking", "seed"]
    if VERIFIERS in models:
        read += ["evaluation.verifiable.source", "evaluation.verifiable.limit"]
    if REFERENCE in models:
        read.append("evaluation.encoder")
    return tuple(read)


def arbiter_contents(settings: Settings) -> list[str]:
    """Return digests of what lies behind the arbiters: other models' weights, the verifiable instructions."""
    arbiters = settings.evaluation.arbiters
    local = {a.model for a in arbiters if not a.server.base_url} - {SELF, *PROGRAMS}
    checked = any(arbiter.model == VERIFIERS for arbiter in arbiters)
    asked = [verifiable_digest(settings.evaluation.verifiable)] if checked else []
    return [*asked, *(model_contents(model) for model in sorted(local))]
