"""The packages and their arrows: the core knows neither Dagster nor MLflow, and starting up stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "srlm_pipeline"
CORE = (
    "acceleration",
    "checks",
    "data",
    "prompting",
    "generation",
    "judging",
    "preference",
    "training",
    "evaluation",
    "models",
    "planning",
    "reporting",
)
# Each may import from those to its left, and from itself.
ORDER = (
    "errors",
    "config",
    "reads",
    "files",
    "lock",
    "progress",
    "tables",
    "acceleration",
    "models",
    "data",
    "checks",
    "generation",
    "prompting",
    "judging",
    "preference",
    "training",
    "attempts",
    "store",
    "archive",
    "notices",
    "evaluation",
    "planning",
    "exports",
    "hub",
    "collecting",
    "relocation",
    "tracking",
    "reporting",
    "resources",
    "assets",
    "definitions",
    "commands",
    "cli",
)


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def house_of(module: str) -> str:
    inner = module.removeprefix("srlm_pipeline.")
    return inner.split(".")[0]


@pytest.mark.parametrize("house", CORE)
def test_core_imports_neither_dagster_nor_mlflow(house: str) -> None:
    for path in (PACKAGE / house).rglob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"dagster", "mlflow"}, path


def test_only_the_tracking_module_imports_mlflow() -> None:
    importing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "mlflow" in {name.split(".")[0] for name in imports_of(path)}
    }
    assert importing == {"tracking.py"}


def test_packages_import_only_from_those_before_them() -> None:
    places = {name: place for place, name in enumerate(ORDER)}
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        own = house_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        for module in imports_of(path):
            if not module.startswith("srlm_pipeline."):
                continue
            other = house_of(module)
            if other != own and places[other] > places.get(own, -1) and own != "__init__":
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert not wrong


def test_loading_the_definitions_imports_no_training_library() -> None:
    code = (
        "import sys, srlm_pipeline.definitions;"
        "print([m for m in ('torch', 'transformers', 'trl', 'peft', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == "[]"


def test_the_packaged_instance_settings_are_those_of_the_repository() -> None:
    tracked = PACKAGE.parent / "dagster_home" / "dagster.yaml"
    assert tracked.read_text() == (PACKAGE / "resources" / "dagster.yaml").read_text()
