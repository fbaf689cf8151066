"""The folder `deploy`, as far as it can be held to its word without Docker or a cluster."""

import fnmatch
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from srlm_pipeline.assets.pods import EXECUTOR_VARIABLE
from srlm_pipeline.cli import app
from srlm_pipeline.commands.home import DATABASE_VARIABLE
from srlm_pipeline.config import load_settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
GPU = yaml.safe_load((DEPLOY / "docker-compose.gpu.yml").read_text())
VALUES = yaml.safe_load((DEPLOY / "values.yaml").read_text())
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
(CODE_LOCATION,) = VALUES["dagster-user-deployments"]["deployments"]
NEEDS_K8S = pytest.mark.skipif(not find_spec("dagster_k8s"), reason="needs srlm_pipeline[k8s]")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", dockerfile.read_text()).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def manifest(kind: str) -> Any:
    return next(found for found in MANIFESTS if found["kind"] == kind)


def require_command(words: list[str]) -> None:
    """Fail unless `srlm` has the command with all its options; what follows them says what they are."""
    program, *arguments = words
    assert program == "srlm"
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_there_and_is_let_through(dockerfile: Path) -> None:
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    let_through = [line[1:] for line in ignore.read_text().split() if line[0] == "!"] if ignore.exists() else ["*"]
    for word, rest in instructions(dockerfile):
        for source in shlex.split(rest)[:-1] if word == "COPY" else []:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in let_through), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_a_command_that_exists_as_somebody_without_rights(dockerfile: Path) -> None:
    found = instructions(dockerfile)
    (command,) = (rest for word, rest in found if word == "CMD")
    require_command(json.loads(command))
    assert not any(word == "ENTRYPOINT" for word, _ in found), "it would come before the commands of runs and steps"
    assert [rest for word, rest in found if word == "USER"][-1] == "srlm"


def test_each_image_is_made_from_the_one_before() -> None:
    bases = {
        path.name: dict(instructions(path))["ARG"] for path in DOCKERFILES if "${" in dict(instructions(path))["FROM"]
    }
    assert set(bases) == {"trainer.Dockerfile", "engine.Dockerfile"}
    first = {name: instructions(DEPLOY / name)[0] for name in bases}
    assert first == {
        "trainer.Dockerfile": ("ARG", "PIPELINE=srlm-pipeline"),
        "engine.Dockerfile": ("ARG", "TRAINER=srlm-trainer"),
    }


def test_the_package_has_the_extras_that_the_image_installs() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r'"\.\[([a-z0-9,]+)\]"', (DEPLOY / "pipeline.Dockerfile").read_text())
    assert set(named.split(",")) <= set(extras)


def test_the_box_runs_a_command_that_exists_with_databases_that_are_made() -> None:
    service = COMPOSE["services"]["srlm"]
    require_command(service["command"])
    environment = service["environment"]
    assert set(environment) == {"DAGSTER_HOME", "SRLM_CONFIG", DATABASE_VARIABLE, "MLFLOW_TRACKING_URI"}
    made = {COMPOSE["services"]["postgres"]["environment"]["POSTGRES_DB"]}
    made |= set(re.findall(r"CREATE DATABASE (\w+);", (DEPLOY / "databases.sql").read_text()))
    asked = {environment[name].rpartition("/")[2] for name in (DATABASE_VARIABLE, "MLFLOW_TRACKING_URI")}
    assert asked == made
    assert set(GPU["services"]) == {"srlm"}


def test_what_the_box_mounts_is_there() -> None:
    mounted = [volume.split(":")[0] for s in COMPOSE["services"].values() for volume in s["volumes"]]
    for source in mounted:
        assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], source


def test_the_projects_are_valid() -> None:
    assert load_settings(DEPLOY / "project.yaml").project == "quickstart"


def test_the_cluster_s_project_is_valid_and_its_engine_fits_the_devices_of_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "project.yaml"
    path.write_text(manifest("ConfigMap")["data"]["project.yaml"])
    settings = load_settings(path)
    engine = settings.engine
    needed = engine.vllm_servers * engine.data_parallel_size * engine.tensor_parallel_size
    writing = {name: step.gpu for name, step in settings.resources.items() if step.image == "srlm-engine:0.2.0"}
    assert set(writing.values()) == {needed}
    (created,) = re.findall(r"/opt/vllm\b", (DEPLOY / "engine.Dockerfile").read_text())[:1]
    assert engine.vllm_python == f"{created}/bin/python"


def test_the_cluster_s_dagster_limits_what_runs_together_as_a_home_does() -> None:
    home = yaml.safe_load((ROOT / "dagster_home" / "dagster.yaml").read_text())
    added = VALUES["additionalInstanceConfig"]
    assert added == {name: home[name] for name in added}
    assert not VALUES["dagsterDaemon"]["runRetries"]["enabled"], "it would be there twice"
    assert VALUES["telemetry"]["enabled"] is home["telemetry"]["enabled"]


def test_what_the_cluster_s_code_location_is_given_exists() -> None:
    from dagster._cli.api import grpc_command

    # As the chart puts it together.
    grpc_command.make_context("grpc", ["-h", "0.0.0.0", "-p", "3030", *CODE_LOCATION["dagsterApiGrpcArgs"]])
    names = {variable["name"] for variable in CODE_LOCATION["env"]}
    assert {"SRLM_CONFIG", EXECUTOR_VARIABLE, "MLFLOW_TRACKING_URI"} <= names
    claims = {v["persistentVolumeClaim"]["claimName"] for v in CODE_LOCATION["volumes"] if "persistentVolumeClaim" in v}
    maps = {volume["configMap"]["name"] for volume in CODE_LOCATION["volumes"] if "configMap" in volume}
    assert claims == {manifest("PersistentVolumeClaim")["metadata"]["name"]}
    assert maps == {manifest("ConfigMap")["metadata"]["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in CODE_LOCATION["volumeMounts"]}
    assert mounts["home"] == VALUES["global"]["dagsterHome"], "locks, tables and artefacts are those of all pods"
    configured = next(v["value"] for v in CODE_LOCATION["env"] if v["name"] == "SRLM_CONFIG")
    assert configured == f"{mounts['project']}/{next(iter(manifest('ConfigMap')['data']))}"


def test_mlflow_is_started_with_options_that_it_has() -> None:
    from mlflow.cli import cli

    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    python, flag, module, command, *options = container["command"]
    assert (python, flag, module) == ("python", "-m", "mlflow")
    cli.commands[command].make_context(command, options)


@NEEDS_K8S
def test_the_manifests_have_only_fields_that_kubernetes_knows() -> None:
    import kubernetes.client
    from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict

    for found in MANIFESTS:
        model = getattr(kubernetes.client, f"V1{found['kind']}")
        k8s_model_from_dict(model, k8s_snake_case_dict(model, found))


@NEEDS_K8S
def test_runs_and_steps_get_the_code_location_s_environment_and_volumes() -> None:
    from dagster_k8s.container_context import K8sContainerContext

    # As the chart hands it on, by `includeConfigInLaunchedRuns`.
    keys = {"env": "env", "volumes": "volumes", "volumeMounts": "volume_mounts"}
    given = {theirs: CODE_LOCATION[ours] for ours, theirs in keys.items()}
    context = K8sContainerContext.create_from_config({"k8s": given})
    assert [mount["name"] for mount in context.run_k8s_config.container_config["volume_mounts"]] == ["home", "project"]
    assert CODE_LOCATION["includeConfigInLaunchedRuns"]["enabled"]
