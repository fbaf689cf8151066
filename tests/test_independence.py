from typing import Any

import pytest

from srlm_pipeline.config import PROGRAMS, Settings, load_settings
from srlm_pipeline.evaluation.independence import dependence, dependences

SERVER = {"base_url": "http://judge.example.org/v1"}


def asking(*arbiters: Any, **more: Any) -> Settings:
    return load_settings("quickstart", {**more, "evaluation": {"arbiters": list(arbiters)}})


def only(settings: Settings) -> str | None:
    (chosen,) = settings.evaluation.arbiters
    return dependence(chosen, settings)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_and_people_are_independent(name: str) -> None:
    assert only(asking(name)) is None
    assert only(asking(name, judge={"panel": ["self", "some/model"]})) is None


@pytest.mark.parametrize("method", ["scores", "comparison"])
def test_m1_is_not_independent_of_its_descendants(method: str) -> None:
    reason = only(asking({"model": "self", "method": method}))
    assert reason is not None
    assert reason.startswith("M1")


def test_another_model_is_independent_unless_it_chose_the_pairs() -> None:
    assert only(asking("some/model")) is None
    assert only(asking("some/model", judge={"panel": ["self", "other/model"]})) is None
    reason = only(asking("some/model", judge={"panel": ["self", "some/model"]}))
    assert reason == "some/model sits in judge.panel, and chose the pairs"


def test_the_model_that_the_loop_started_from_is_not_independent() -> None:
    reason = only(asking("some/model", base_model="some/model"))
    assert reason == "some/model is the model that the loop started from"
    assert only(asking({"model": "some/model", "server": SERVER}, base_model="some/model")) is None


def test_models_of_servers_are_told_apart_by_their_addresses() -> None:
    arbiter = {"model": "big", "server": SERVER}
    there = [{"model": "big", "server": SERVER}]
    elsewhere = [{"model": "big", "server": {"base_url": "http://another.example.org/v1"}}]
    reason = only(asking(arbiter, judge={"panel": there}))
    assert reason == "big sits in judge.panel, and chose the pairs"
    assert only(asking(arbiter, judge={"panel": elsewhere})) is None
    assert only(asking("big", judge={"panel": there})) is None


def test_one_arbiter_that_is_not_independent_is_enough() -> None:
    assert dependences(asking("verifiers", "some/model")) == ()
    mixed = dependences(asking("verifiers", "self", "some/model", judge={"panel": ["some/model"]}))
    assert len(mixed) == 2
    assert mixed[0].startswith("M1")
    assert "judge.panel" in mixed[1]


def test_the_defaults_are_not_independent() -> None:
    assert len(dependences(load_settings("quickstart"))) == 1
