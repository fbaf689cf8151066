"""Steps as pods on Kubernetes: what the settings give them, as Dagster's own code for Kubernetes reads it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from fake_cluster import fake_cluster

from srlm_pipeline.assets.pods import EXECUTOR_VARIABLE, K8S_CONFIG_TAG, pod_tags, step_executor
from srlm_pipeline.config import StepResources, load_settings
from srlm_pipeline.config.cluster import ASSETS
from srlm_pipeline.errors import SettingsError, SrlmError
from srlm_pipeline.reads import STAGES

NEEDS_K8S = pytest.mark.skipif(not find_spec("dagster_k8s"), reason="needs srlm_pipeline[k8s]")


def test_every_asset_can_be_given_resources() -> None:
    import srlm_pipeline.definitions  # noqa: F401

    assert set(ASSETS) == set(STAGES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"candidate": {"gpu": 4}}, "there is no asset candidate; there are .*candidates"),
        ({"candidates": {"gpus": 4}}, r"resources.candidates.gpus"),
        ({"candidates": {"gpu": -1}}, r"resources.candidates.gpu"),
        ({"candidates": {"memory": "64GB"}}, r"resources.candidates.memory"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_settings("quickstart", {"resources": given})


def test_an_asset_without_resources_has_no_tags() -> None:
    assert pod_tags(load_settings("quickstart").resources.get("candidates")) == {}


@NEEDS_K8S
def test_a_pod_gets_what_the_settings_say() -> None:
    from dagster_k8s.job import DagsterK8sJobConfig, construct_dagster_k8s_job, get_user_defined_k8s_config

    given = {"candidates": {"gpu": 4, "cpu": 16, "memory": "128Gi", "image": "srlm-engine:1"}}
    tags = pod_tags(load_settings("quickstart", {"resources": given}).resources["candidates"])

    @dg.op(tags=tags)
    def candidates() -> None:
        """Through an op, whose tags are text."""

    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="srlm-pipeline:1", dagster_home="/srlm/home"),
        ["dagster", "api", "execute_step"],
        "step",
        user_defined_k8s_config=get_user_defined_k8s_config(candidates.tags),
    )
    pod = job.spec.template.spec
    (container,) = pod.containers
    assert container.image == "srlm-engine:1"
    assert container.resources.limits == {"nvidia.com/gpu": "4", "memory": "128Gi"}
    assert container.resources.requests == {"nvidia.com/gpu": "4", "memory": "128Gi", "cpu": "16"}
    assert [mount.mount_path for mount in container.volume_mounts] == ["/dev/shm"]
    assert [toleration.key for toleration in pod.tolerations] == ["nvidia.com/gpu"]


def test_a_step_without_gpus_goes_anywhere() -> None:
    config = pod_tags(StepResources(memory="8Gi"))[K8S_CONFIG_TAG]
    assert config == {
        "container_config": {"resources": {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi"}}},
    }


def test_steps_are_processes_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXECUTOR_VARIABLE, raising=False)
    assert step_executor().name == "multiprocess"
    monkeypatch.setenv(EXECUTOR_VARIABLE, "slurm")
    with pytest.raises(SrlmError, match=r"SRLM_EXECUTOR is 'slurm'; it can be processes"):
        step_executor()
    monkeypatch.setenv(EXECUTOR_VARIABLE, "k8s")
    monkeypatch.setattr("srlm_pipeline.assets.pods.find_spec", lambda _: None)
    with pytest.raises(SrlmError, match=r"pip install 'srlm_pipeline\[k8s\]'"):
        step_executor()


@NEEDS_K8S
def test_steps_are_pods_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTOR_VARIABLE, "k8s")
    assert step_executor().name == "k8s"


@NEEDS_K8S
@pytest.mark.slow
def test_a_step_runs_as_the_pod_that_the_settings_ask_for(tmp_path: Path) -> None:
    """Dagster's command line and client and the pipeline's step are the real ones; only the cluster is not."""
    home, config = tmp_path / "home", tmp_path / "project.yaml"
    home.mkdir()
    resources = {"ift_dataset": {"cpu": 2, "memory": "4Gi", "image": "srlm-trainer:1"}}
    config.write_text(yaml.safe_dump({"data": {"ift_limit": 3}, "resources": resources}), encoding="utf-8")
    root = str(Path(__file__).parent.parent)
    environment = {
        **{
            "PYTHONPATH": root,
            "SRLM_CONFIG": str(config),
            EXECUTOR_VARIABLE: "k8s",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        # Of the environment that the code runs in, wherever the command is started.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with fake_cluster(environment) as cluster:
        cluster.write_kubeconfig(tmp_path / "kubeconfig")
        launcher = {
            "service_account_name": "dagster",
            "job_image": "srlm-pipeline:1",
            "dagster_home": str(home),
            "instance_config_map": "dagster-instance",
            "load_incluster_config": False,
            "kubeconfig_file": str(tmp_path / "kubeconfig"),
        }
        instance = {"run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher}}
        (home / "dagster.yaml").write_text(yaml.safe_dump({**instance, "telemetry": {"enabled": False}}))
        words = ["asset", "materialize", "--select", "ift_dataset", "-m", "srlm_pipeline.definitions"]
        ran = subprocess.run(
            [sys.executable, "-m", "dagster", *words],
            env={**os.environ, **environment, "DAGSTER_HOME": str(home)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (job,) = cluster.jobs.values()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "srlm-trainer:1"
    assert container["resources"] == {"limits": {"memory": "4Gi"}, "requests": {"cpu": "2", "memory": "4Gi"}}
    assert container["args"][:3] == ["dagster", "api", "execute_step"]
    assert list(home.rglob("ift_dataset.parquet")), "the step has done its work"
