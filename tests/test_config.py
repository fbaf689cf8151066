from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from srlm_pipeline.config import (
    PRESETS,
    PROGRAMS,
    Settings,
    describe_fields,
    load_settings,
    merge_overrides,
    parse_override,
)
from srlm_pipeline.errors import SettingsError

SECTION_CHANGES: dict[str, dict[str, Any]] = {
    "model": {"save_dtype": "float16"},
    "engine": {"concurrency": 17},
    "data": {"held_out_fraction": 0.123},
    "sft": {"learning_rate": 0.0123},
    "eft": {"epochs": 7.5},
    "prompt_generation": {"count": 17},
    "candidates": {"temperature": 0.123},
    "judge": {"samples": 17},
    "pairs": {"min_margin": 0.123},
    "dpo": {"beta": 0.123},
    "baselines": {"start_from": "rlhf"},
    "evaluation": {"tie_margin": 0.123},
    "monitors": {"max_kl": 0.123},
    "promotion": {"min_win_rate": 0.123},
    "schedule": {"planned_iterations": 17},
    "tracking": {"ui_url": "http://example.org"},
    "notices": {"max_retries": 17},
    "archive": {"max_retries": 17},
}
EXISTING_PRESETS = [p for p in PRESETS if resources.files("srlm_pipeline.presets").joinpath(f"{p}.yaml").is_file()]


@pytest.fixture(autouse=True)
def no_config_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRLM_CONFIG", raising=False)


@pytest.fixture
def write_config(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problems_of(source: str | Path | None, overrides: dict[str, Any] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(source, overrides)
    return caught.value.problems


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads(name: str) -> None:
    if name not in EXISTING_PRESETS:
        pytest.skip("this preset does not exist yet")
    assert load_settings(name).preset == name


@pytest.mark.parametrize("name", EXISTING_PRESETS)
def test_every_presets_micro_batch_divides_its_batch(name: str) -> None:
    settings = load_settings(name)
    for stage in (settings.sft, settings.eft, settings.dpo):
        assert stage.batch_size % stage.micro_batch_size == 0


def test_paper_preset_has_the_papers_numbers() -> None:
    settings = load_settings("paper")
    assert settings.prompt_generation.count == 5000
    assert (settings.candidates.per_prompt, settings.candidates.temperature, settings.candidates.top_p) == (4, 0.7, 0.9)
    assert (settings.judge.mode, settings.judge.samples) == ("sampled", 3)
    assert (settings.sft.learning_rate, settings.dpo.learning_rate, settings.dpo.beta) == (5.5e-6, 1e-6, 0.1)


def test_the_documented_values_of_the_presets_are_those_they_have() -> None:
    lines = (Path(__file__).parent.parent / "docs" / "presets.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert len(rows) > 40
    presets = [load_settings(name) for name in ("paper", "single-gpu", "quickstart")]
    for key, _, *documented, _ in rows:
        for preset, value in zip(presets, documented, strict=True):
            found: Any = preset
            for part in key.split("."):
                found = found[int(part)] if part.isdigit() else getattr(found, part)
            assert str(found) == value, key


def test_without_a_source_quickstart_is_loaded() -> None:
    assert load_settings() == load_settings("quickstart")


def test_environment_variable_names_the_source(write_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRLM_CONFIG", str(write_config("seed: 77\n")))
    assert load_settings().seed == 77


def test_explicit_source_wins_over_environment(write_config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRLM_CONFIG", str(write_config("seed: 77\n")))
    assert load_settings(write_config("seed: 78\n", "other.yaml")).seed == 78


def test_file_needs_to_name_only_what_differs_from_its_preset(write_config) -> None:
    settings = load_settings(write_config("preset: paper\ndpo:\n  beta: 0.25\n"))
    paper = load_settings("paper")
    assert settings.dpo.beta == 0.25
    assert settings.model_copy(update={"dpo": paper.dpo}) == paper


def test_empty_file_is_the_quickstart_preset(write_config) -> None:
    assert load_settings(write_config("# nothing yet\n")) == load_settings("quickstart")


def test_overrides_win_over_the_file(write_config) -> None:
    settings = load_settings(write_config("dpo:\n  beta: 0.25\n  epochs: 3\n"), {"dpo": {"beta": 0.5}})
    assert (settings.dpo.beta, settings.dpo.epochs) == (0.5, 3)


@pytest.mark.parametrize(
    ("text", "path", "nearest"),
    [
        ("dpo:\n  learning_rat: 1e-6\n", "dpo.learning_rat", "learning_rate"),
        ("candidats:\n  per_prompt: 4\n", "candidats", "candidates"),
        ("sft:\n  lora:\n    rnak: 4\n", "sft.lora.rnak", "rank"),
        ("judge:\n  sample: 4\n", "judge.sample", "samples"),
        ("held_out_fraction: 0.3\n", "held_out_fraction", "data.held_out_fraction"),
        ("data:\n  ift: {sorce: a.jsonl}\n", "data.ift.sorce", "source"),
        ("data:\n  ift: {columns: {promt: text}}\n", "data.ift.columns.promt", "prompt"),
        ("evaluation:\n  arbiters: [self, {metod: scores}]\n", "evaluation.arbiters.1.metod", "method"),
        ("judge:\n  panel: [{server: {base_ur: x}}]\n", "judge.panel.0.server.base_ur", "base_url"),
        ("promotion:\n  margins: {loop: 0.1}\n", "promotion.margins.loop", "loops"),
        ("evaluation:\n  closed_tasks: {sorce: none}\n", "evaluation.closed_tasks.sorce", "source"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_name(write_config, text: str, path: str, nearest: str) -> None:
    (problem,) = problems_of(write_config(text))
    assert problem.startswith(f"{path}:")
    assert repr(nearest) in problem


@pytest.mark.parametrize("text", ["zzzzzzzz: 1\n", "pairs:\n  zzzzzzzz: 1\n"])
def test_unknown_key_like_no_other_says_where_all_names_are_instead_of_listing_them(write_config, text: str) -> None:
    (problem,) = problems_of(write_config(text))
    assert problem.endswith("zzzzzzzz: unknown setting; `srlm settings` lists all")


def test_no_more_than_three_names_are_offered_whatever_the_section(write_config) -> None:
    (problem,) = problems_of(write_config("lerning_rate: 1\n"))
    assert problem.endswith("did you mean 'sft.learning_rate', 'eft.learning_rate' or 'dpo.learning_rate'?")


def test_unknown_key_in_overrides_is_refused_too() -> None:
    (problem,) = problems_of("quickstart", {"dpo": {"bta": 1}})
    assert "'beta'" in problem


def test_all_problems_are_reported_together() -> None:
    problems = problems_of("quickstart", {"seed": -1, "dpo": {"beta": 0}, "judge": {"mode": "loud"}})
    assert {p.split(":")[0] for p in problems} == {"seed", "dpo.beta", "judge.mode"}


@pytest.mark.parametrize(
    "overrides",
    [
        {"dpo": {"learning_rate": 0}},
        {"dpo": {"learning_rate": float("nan")}},
        {"candidates": {"per_prompt": 1}},
        {"candidates": {"top_p": 0}},
        {"judge": {"temperature": 0}},
        {"data": {"held_out_fraction": 1}},
        {"project": "../elsewhere"},
        {"project": ""},
        {"project": "smollm2-135m-instruct"},
        {"project": "SmolLM2-135M-Instruct"},
        {"project": "all-minilm-l6-v2"},
        {"project": "x" * 300},
        {"seed": 2**32},
        {"dpo": {"learning_rate": float("inf")}},
        {"evaluation": {"tie_margin": float("inf")}},
        {"base_model": ""},
        {"base_model": "  "},
        {"data": {"ift": ""}},
        {"prompt_generation": {"generator": ""}},
        {"dpo": None},
        {"dpo": 3},
        {"sft": {"batch_size": 6, "micro_batch_size": 4}},
    ],
)
def test_values_out_of_range_are_refused(overrides: dict[str, Any]) -> None:
    assert len(problems_of("quickstart", overrides)) == 1


def test_default_micro_batch_that_does_not_divide_the_batch_is_refused() -> None:
    assert problems_of("paper", {"eft": {"batch_size": 6}})


def test_missing_file_names_the_presets() -> None:
    (problem,) = problems_of("no/such/file.yaml")
    assert all(preset in problem for preset in PRESETS)


def test_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path)


def test_unknown_preset_names_the_nearest(write_config) -> None:
    (problem,) = problems_of(write_config("preset: quikstart\n"))
    assert "'quickstart'" in problem


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "dpo: [1\n", "a: b: c\n"])
def test_what_is_no_mapping_is_refused(write_config, text: str) -> None:
    path = write_config(text)
    with pytest.raises(SettingsError, match=r"mine\.yaml"):
        load_settings(path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nproject: one\nseed: 2\n", "'seed' is given twice"),
        ("dpo:\n  beta: 0.1\n  beta: 0.2\n", "'beta' is given twice"),
        (BOMB, "too many values"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("owners: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("seed: 2020-99-99\n", "month must be in"),
        ("seed: " + "9" * 5000, "digits"),
    ],
)
def test_yaml_that_nobody_means_is_refused_in_a_sentence(write_config, text: str, said: str) -> None:
    (problem,) = problems_of(write_config(text))
    assert said in problem
    assert len(problem) < 500


def test_aliases_are_written_out(write_config) -> None:
    path = write_config("sft: &training {epochs: 3}\neft: *training\ndpo:\n  <<: *training\n  beta: 0.3\n")
    settings = load_settings(path)
    assert (settings.sft.epochs, settings.eft.epochs, settings.dpo.epochs, settings.dpo.beta) == (3, 3, 3, 0.3)


def test_of_a_long_value_only_the_beginning_is_shown() -> None:
    (problem,) = problems_of("quickstart", {"project": "/" * 100_000})
    assert len(problem) < 500


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("project: café\n".encode("latin-1"))
    assert problems_of(path)


@pytest.mark.parametrize("text", ["5.5e-6", "5.5E-06", "55e-7", "0.0000055"])
def test_scientific_notation_is_a_number(write_config, text: str) -> None:
    assert load_settings(write_config(f"dpo:\n  learning_rate: {text}\n")).dpo.learning_rate == pytest.approx(5.5e-6)
    assert parse_override(f"dpo.learning_rate={text}")["dpo"]["learning_rate"] == pytest.approx(5.5e-6)


def test_relative_paths_are_relative_to_the_file(write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    (tmp_path / "weights").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = load_settings(write_config("data:\n  ift: mine.jsonl\nbase_model: weights\nstorage: store\n"))
    assert Path(settings.data.ift.source) == (tmp_path / "mine.jsonl").resolve()
    assert Path(settings.base_model) == (tmp_path / "weights").resolve()
    assert Path(str(settings.storage)) == (tmp_path / "store").resolve()
    assert settings.data.ranked_replies.source == "embedded"
    nested = load_settings(write_config("data:\n  ift: {source: mine.jsonl, format: plain}\n"))
    assert Path(nested.data.ift.source) == (tmp_path / "mine.jsonl").resolve()


def test_a_relative_file_of_closed_tasks_is_relative_to_the_configuration(write_config, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("")
    read = load_settings(write_config("evaluation: {closed_tasks: {source: tasks.jsonl}}\n")).evaluation
    assert Path(read.closed_tasks.source) == (tmp_path / "tasks.jsonl").resolve()
    for name in ("embedded", "none"):
        settings = load_settings(write_config(f"evaluation: {{closed_tasks: {{source: {name}}}}}\n"))
        assert settings.evaluation.closed_tasks.source == name


@pytest.mark.parametrize("name", PROGRAMS)
def test_arbiters_that_are_no_model_are_never_folders_or_servers(write_config, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    settings = load_settings(write_config(f"evaluation: {{arbiters: [{name}]}}\n"))
    assert [arbiter.model for arbiter in settings.evaluation.arbiters] == [name]
    asked = {"evaluation": {"arbiters": [{"model": name, "server": {"base_url": "http://a/v1"}}]}}
    assert any("name of the server's model" in problem for problem in problems_of("quickstart", asked))


@pytest.mark.parametrize("margin", [0, -0.1, 1.1])
def test_a_margin_is_a_share_above_nothing(margin: float) -> None:
    (problem,) = problems_of("quickstart", {"promotion": {"margins": {"loops": margin}}})
    assert problem.startswith("promotion.margins.loops:")


def test_the_base_model_and_the_baseline_are_compared_with_by_default() -> None:
    assert load_settings("quickstart").promotion.against == ("baseline", "base")
    assert len(problems_of("quickstart", {"promotion": {"against": ["champion"]}})) == 1


def test_relative_models_of_arbiters_and_judges_are_relative_to_the_file(write_config, tmp_path: Path) -> None:
    for name in ("weights", "self", "verifiers", "big"):
        (tmp_path / name).mkdir()
    text = "[self, weights, org/model, {model: weights}, {model: big, server: {base_url: 'http://a/v1'}}, ./self]"
    weights = str((tmp_path / "weights").resolve())
    expected = ["self", weights, "org/model", weights, "big", str((tmp_path / "self").resolve())]
    settings = load_settings(write_config(f"evaluation: {{arbiters: {text}}}\njudge: {{panel: {text}}}\n"))
    assert [arbiter.model for arbiter in settings.evaluation.arbiters] == expected
    assert [member.model for member in settings.judge.panel] == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluation": {"arbiters": [{"server": {"base_url": "http://a/v1"}}]}}, "name of the server's model"),
        ({"judge": {"panel": [{"server": {"base_url": "http://a/v1"}}]}}, "name of the server's model"),
        (
            {"judge": {"panel": [{"model": "big", "mode": "hybrid", "server": {"base_url": "http://a/v1"}}]}},
            "mode hybrid reads probabilities",
        ),
        ({"evaluation": {"arbiters": []}}, "at least 1 item"),
    ],
)
def test_judges_that_cannot_be_asked_are_refused(settings: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems_of("quickstart", settings))


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("data: {ift: a.jsonl}", ["data.ift.format=messages"], ("a.jsonl", "messages")),
        ("data: {ift: {source: a.jsonl, format: plain}}", ["data.ift=b.jsonl"], ("b.jsonl", "plain")),
        ("", ["data.ift=a.jsonl", "data.ift.format=plain"], ("a.jsonl", "plain")),
        ("", ["data.ift.format=plain", "data.ift=a.jsonl"], ("a.jsonl", "plain")),
    ],
)
def test_short_form_of_a_section_names_one_field_and_leaves_the_others(
    write_config, text: str, options: list[str], expected: tuple[str, str]
) -> None:
    ift = load_settings(write_config(text), merge_overrides(options)).data.ift
    assert (ift.source, ift.format) == expected


def test_short_form_and_long_form_are_the_same_settings(write_config) -> None:
    short = load_settings(write_config("data: {ift: some/name}\nengine: vllm"))
    long = load_settings(write_config("data: {ift: {source: some/name}}\nengine: {kind: vllm}"))
    assert short == long
    assert short.fingerprint("data.ift") == long.fingerprint("data.ift")
    other = load_settings(write_config("data: {ift: {source: some/name, split: test}}"))
    assert other.fingerprint("data.ift") != long.fingerprint("data.ift")
    assert other.fingerprint("data.ranked_replies") == long.fingerprint("data.ranked_replies")


def test_hub_names_are_left_alone(write_config) -> None:
    assert load_settings(write_config("base_model: Qwen/Qwen2.5-0.5B\n")).base_model == "Qwen/Qwen2.5-0.5B"


def test_home_folder_in_storage_is_expanded(write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load_settings(write_config("storage: ~/srlm\n"))
    assert Path(str(settings.storage)).expanduser() == tmp_path / "home" / "srlm"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings("quickstart")
    with pytest.raises(ValidationError):
        settings.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.dpo.beta = 1  # type: ignore[misc]


@pytest.mark.parametrize("section", SECTION_CHANGES)
def test_fingerprint_changes_with_its_own_section(section: str) -> None:
    before = load_settings("quickstart").fingerprint(section)
    assert load_settings("quickstart", {section: SECTION_CHANGES[section]}).fingerprint(section) != before


@pytest.mark.parametrize("section", SECTION_CHANGES)
def test_fingerprint_does_not_change_with_other_sections(section: str) -> None:
    others = {name: change for name, change in SECTION_CHANGES.items() if name != section}
    before = load_settings("quickstart").fingerprint(section)
    assert load_settings("quickstart", others | {"seed": 999, "project": "other"}).fingerprint(section) == before


def test_fingerprint_covers_every_section_that_the_settings_have() -> None:
    sections = {name for name, value in load_settings("quickstart") if isinstance(value, BaseModel)}
    assert sections == set(SECTION_CHANGES)


def test_fingerprint_of_a_single_field_ignores_its_neighbours() -> None:
    before = load_settings("quickstart")
    neighbour = load_settings("quickstart", {"candidates": {"top_p": 0.123}})
    itself = load_settings("quickstart", {"candidates": {"temperature": 0.123}})
    assert neighbour.fingerprint("candidates.temperature") == before.fingerprint("candidates.temperature")
    assert itself.fingerprint("candidates.temperature") != before.fingerprint("candidates.temperature")


def test_fingerprint_of_the_judge_leaves_its_panel_to_those_who_name_it() -> None:
    alone, panel = (
        load_settings("quickstart"),
        load_settings("quickstart", {"judge": {"panel": ["self", "some/model"]}}),
    )
    assert panel.fingerprint("judge") == alone.fingerprint("judge")
    assert panel.fingerprint("judge.panel") != alone.fingerprint("judge.panel")


def test_fingerprint_of_a_server_is_what_it_says_and_not_how_it_is_reached() -> None:
    def decided_by(**server: Any) -> str:
        arbiter = {"model": "big", "server": {"base_url": "http://a/v1", **server}}
        return load_settings("quickstart", {"evaluation": {"arbiters": [arbiter]}}).fingerprint("evaluation")

    assert decided_by() == decided_by(max_requests=7, concurrency=1, timeout_seconds=1, max_retries=0)
    assert decided_by() != decided_by(max_new_tokens=7)
    assert decided_by() != decided_by(base_url="http://b/v1")


def test_fingerprint_of_a_training_does_not_change_with_the_number_of_checkpoints() -> None:
    often = load_settings("quickstart", {"sft": {"save_every": 1}, "baselines": {"rlhf": {"save_every": 1}}})
    assert often.fingerprint("sft", "baselines") == load_settings("quickstart").fingerprint("sft", "baselines")


def test_fingerprint_ignores_the_order_of_keys() -> None:
    settings = load_settings("quickstart")
    assert settings.fingerprint("judge", "seed") == settings.fingerprint("seed", "judge")
    assert settings.fingerprint("judge", "seed") != settings.fingerprint("judge")


@given(
    st.recursive(st.integers() | st.booleans() | st.text(max_size=5), lambda v: st.lists(v, max_size=3), max_leaves=4)
)
def test_any_value_anywhere_either_loads_or_is_a_settings_error(value: Any) -> None:
    for overrides in ({"seed": value}, {"dpo": value}, {"sft": {"lora": value}}, {"owners": value}):
        try:
            assert isinstance(load_settings("quickstart", overrides), Settings)
        except SettingsError as error:
            assert error.problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dpo.beta=0.2", {"dpo": {"beta": 0.2}}),
        ("seed=3", {"seed": 3}),
        ("sft.lora.rank=8", {"sft": {"lora": {"rank": 8}}}),
        ("eft.enabled=false", {"eft": {"enabled": False}}),
        ("data.ift=a=b.jsonl", {"data": {"ift": "a=b.jsonl"}}),
        ("data.ift_limit=null", {"data": {"ift_limit": None}}),
        ("owners=[a@b.c, team:x]", {"owners": ["a@b.c", "team:x"]}),
        (" dpo.beta =0.2", {"dpo": {"beta": 0.2}}),
    ],
)
def test_override_text_becomes_a_nested_mapping(text: str, expected: dict[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["dpo.beta", "", "=3", "dpo.beta 0.2"])
def test_override_without_key_or_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        parse_override(text)


@pytest.mark.parametrize("text", ["owners=[a", "project='x", "seed=a: b: c"])
def test_override_whose_value_is_no_yaml_is_refused(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_override(text)


def test_later_overrides_win_and_neighbours_stay() -> None:
    merged = merge_overrides(["dpo.beta=0.2", "dpo.epochs=2", "dpo.beta=0.3", "seed=1"])
    assert merged == {"dpo": {"beta": 0.3, "epochs": 2}, "seed": 1}


def test_every_setting_is_listed_once_with_its_dotted_key() -> None:
    keys = [key for key, _, _ in describe_fields()]
    assert len(keys) == len(set(keys))
    assert {"seed", "dpo.beta", "sft.lora.rank", "promotion.min_win_rate"} <= set(keys)
    settings = load_settings("quickstart")
    for key in keys:
        # The fields of a list's items are no settings of their own.
        settings.fingerprint(key.partition("[]")[0])


def test_listed_defaults_are_those_of_the_settings() -> None:
    listed = {key: default for key, default, _ in describe_fields()}
    assert listed["dpo.beta"] == repr(Settings().dpo.beta)
    assert listed["sft.learning_rate"] == repr(Settings().sft.learning_rate)


def test_former_names_of_settings_still_work_and_say_what_they_are_called_now(
    write_config, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_config("preset: quickstart\neft:\n  ranking: true\n  strangers: 2\n")
    settings = load_settings(written, {"eft": {"spoiled": 1}})
    assert (settings.eft.mismatched_negatives, settings.eft.corrupted_negatives) == (2, 1)
    assert "strangers is called mismatched_negatives now" in caplog.text
    assert "spoiled is called corrupted_negatives now" in caplog.text


def test_of_a_former_and_a_new_name_the_new_one_is_meant(write_config) -> None:
    written = write_config("preset: quickstart\neft:\n  ranking: true\n  strangers: 2\n  mismatched_negatives: 3\n")
    assert load_settings(written).eft.mismatched_negatives == 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eft": {"targets": "dataset"}}, "needs eft.targets: ranks"),
        ({"eft": {"targets": "ranks"}, "pairs": {"strategy": "positive_only"}}, "needs sft.enabled: true"),
    ],
)
def test_without_sft_nothing_is_asked_for_that_sft_learns(settings: dict[str, Any], said: str) -> None:
    off = {"sft": {"enabled": False}}
    assert any(said in problem for problem in problems_of("quickstart", {**settings, **off}))
    assert not load_settings("quickstart", {"eft": {"targets": "ranks"}, **off}).sft.enabled
