"""What a step takes where each step is a pod of its own, on Kubernetes; nothing else reads it."""

from __future__ import annotations

from pydantic import Field

from srlm_pipeline.config.sections import Section

# What steps can be named: all assets, which config cannot ask. A test holds the two together.
ASSETS = (
    "ift_dataset", "ranked_replies", "evaluation_prompts", "sft_baseline", "eft_dataset", "seed_model",
    "seed_assessment", "seed_evaluation", "policy", "champion", "generated_prompts", "candidates", "judged_scores",
    "preference_pairs", "iteration_model", "assessment", "win_rates", "collapse_monitors", "promotion",
    "iteration_report", "human_dpo_model", "reward_model", "rlhf_model", "baseline_comparison",
)  # fmt: skip


class StepResources(Section):
    """What one step's pod asks for."""

    gpu: int = Field(0, ge=0, description="GPUs, as nvidia.com/gpu")
    cpu: float | None = Field(None, gt=0, description="cores that are kept free for it; more are used where they are")
    memory: str | None = Field(
        None, pattern=r"^[1-9][0-9]*(Ki|Mi|Gi|Ti)$", description="kept free for it, and the most it may take, e.g. 64Gi"
    )
    image: str | None = Field(None, min_length=1, description="container image; None: the code location's")
