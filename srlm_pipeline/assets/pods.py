"""Where steps run: processes here, or pods on Kubernetes, each with what the settings give it."""

import os
from importlib.util import find_spec
from typing import Any

import dagster as dg

from srlm_pipeline.config import StepResources
from srlm_pipeline.errors import SrlmError

EXECUTOR_VARIABLE = "SRLM_EXECUTOR"
# Read by Dagster's executor for Kubernetes, and by nothing else.
K8S_CONFIG_TAG = "dagster-k8s/config"
_GPU = "nvidia.com/gpu"


def step_executor() -> dg.ExecutorDefinition:
    """Return what runs the steps of a run, as the environment variable SRLM_EXECUTOR says: `processes` or `k8s`.

    Raises:
        SrlmError: If it says anything else, or `k8s` where dagster-k8s is not installed.
    """
    chosen = os.environ.get(EXECUTOR_VARIABLE) or "processes"
    if chosen == "processes":
        # One process per step gives memory back after each; one at a time, because they share the accelerator.
        return dg.multiprocess_executor.configured({"max_concurrent": 1})
    if chosen != "k8s":
        raise SrlmError(f"{EXECUTOR_VARIABLE} is {chosen!r}; it can be processes (the default) or k8s")
    if not find_spec("dagster_k8s"):
        raise SrlmError(f"{EXECUTOR_VARIABLE}=k8s needs the package dagster-k8s: `pip install 'srlm_pipeline[k8s]'`")
    from dagster_k8s import k8s_job_executor

    return k8s_job_executor


def pod_tags(step: StepResources | None) -> dict[str, Any]:
    """Return the tags that give a step's pod what it asks for; none if it asks for nothing.

    Args:
        step: From the setting `resources`.
    """
    if step is None:
        return {}
    limits = {**({_GPU: str(step.gpu)} if step.gpu else {}), **({"memory": step.memory} if step.memory else {})}
    requests = {**limits, **({"cpu": f"{step.cpu:g}"} if step.cpu else {})}
    container: dict[str, Any] = {"resources": {"limits": limits, "requests": requests}}
    if step.image:
        container["image"] = step.image
    config: dict[str, Any] = {"container_config": container}
    if step.gpu:
        # Processes that share GPUs exchange through /dev/shm, of which a container has 64 MiB by itself.
        container["volume_mounts"] = [{"name": "shm", "mount_path": "/dev/shm"}]  # noqa: S108
        config["pod_spec_config"] = {
            "volumes": [{"name": "shm", "empty_dir": {"medium": "Memory"}}],
            # GPU nodes usually refuse what does not ask for a GPU.
            "tolerations": [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}],
        }
    return {K8S_CONFIG_TAG: config}
