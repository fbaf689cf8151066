"""What assets leave on disk, and whether it is still there and whole: Dagster knows only that it was made."""

from srlm_pipeline.assets.assessment import SEED_MODELS
from srlm_pipeline.assets.seed import M1
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import EmptyDataError, SrlmError
from srlm_pipeline.evaluation.assessment import read_assessment
from srlm_pipeline.evaluation.promotion import read_decision
from srlm_pipeline.reporting.pages import report_name
from srlm_pipeline.resources.table_io import SCHEMAS
from srlm_pipeline.store import HUMAN_DPO_MODEL, REWARD_MODEL, RLHF_MODEL, SFT_BASELINE, ProjectStore, model_name
from srlm_pipeline.tables import read_table

_MODELS = {name: name for name in (SFT_BASELINE, REWARD_MODEL, RLHF_MODEL, HUMAN_DPO_MODEL)} | {"seed_model": M1}


def loss(store: ProjectStore, settings: Settings, asset: str, iteration: int | None) -> str | None:
    """Return what is missing or cannot be read of what an asset once made; None if nothing is.

    Args:
        store: The project's folders.
        settings: They name the base model.
        asset: Name of an asset that was materialized.
        iteration: Of its partition, if it has one.
    """
    try:
        _read(store, settings, asset, iteration)
    except SrlmError as error:
        return str(error)
    return None


def _read(store: ProjectStore, settings: Settings, asset: str, iteration: int | None) -> None:
    if asset in SCHEMAS:
        read_table(SCHEMAS[asset], store.table_path(asset, iteration))
    if asset in _MODELS:
        store.checkpoint(_MODELS[asset])
    if asset == "seed_assessment":
        for name in SEED_MODELS:
            read_assessment(store, store.named_model(settings, name))
    if iteration is None:
        return
    if asset == "iteration_model":
        store.checkpoint(model_name(iteration + 1))
    if asset == "assessment":
        read_assessment(store, store.checkpoint(model_name(iteration + 1)))
    if asset == "promotion" and read_decision(store.decision_path(iteration)) is None:
        raise EmptyDataError(f"there is no {store.decision_path(iteration)}")
    page = store.root / "reports" / report_name(iteration)
    if asset == "iteration_report" and not (page.is_file() and page.with_suffix(".md").is_file()):
        raise EmptyDataError(f"there is no {page}")
