"""The zoo: whatever the seed, its animals learn what their names promise; each is made once, and says from what."""

import json
import re
from pathlib import Path
from random import Random

import pandas as pd
import pytest

from benchmarks import zoo
from benchmarks.zoo import (
    ANIMALS,
    BRIEFLY,
    Animal,
    Making,
    Sources,
    add_noise,
    closed_items,
    exchanges,
    good_own_replies,
    make_animal,
    reversed_pairs,
)
from srlm_pipeline.checks.text import likely_language
from srlm_pipeline.config import load_settings
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.tables import INSTRUCTIONS, PREFERENCE_PAIRS, check_table

SEED_DATA = Path(__file__).parent.parent / "srlm_pipeline" / "data" / "seed"
SEEDS = (0, 20, 21)
BY_KIND = {animal.kind: animal for animal in ANIMALS}
TAUGHT = tuple(zoo._LESSONS)


def read_rows(name: str) -> list[dict[str, object]]:
    path = SEED_DATA / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def sources() -> Sources:
    ift = check_table(pd.DataFrame(read_rows("ift"))[list(INSTRUCTIONS.columns)], INSTRUCTIONS)
    base, m1 = (Checkpoint(Path(name), name, name * 2, None) for name in ("base", "M1"))
    return Sources(base, m1, some_pairs(), ift, load_settings("quickstart"))


def some_pairs() -> pd.DataFrame:
    pair = {
        "prompt_id": "p", "prompt": "hello", "strategy": "best_worst", "length_control": 0.0, "min_margin": 0.1,
        "chosen_sample": 0, "rejected_sample": 1, "chosen": "good", "rejected": "bad", "chosen_finish_reason": "stop",
        "rejected_finish_reason": "length", "chosen_score": 4.0, "rejected_score": 1.0, "margin": 3.0,
        "chosen_passed": None, "rejected_passed": None,
        "rejected_for": "", "judge": "M1",
    }  # fmt: skip
    return check_table(pd.DataFrame([pair, {**pair, "prompt_id": "q"}]), PREFERENCE_PAIRS)


def replies(kind: str, seed: int, sources: Sources) -> list[str]:
    return [reply for _, reply in exchanges(kind, seed, sources)]


def test_every_kind_has_one_name_and_one_way_of_being_made() -> None:
    kinds = [animal.kind for animal in ANIMALS]
    assert len(set(kinds)) == len(kinds)
    made = [*zoo._NOISE, *zoo._PREFERENCES, *zoo._LESSONS]
    assert sorted(kinds) == sorted(made)
    assert [animal.kind for animal in ANIMALS if not animal.damaged] == ["improved", "polished"]
    assert {animal.kind for animal in ANIMALS if animal.source == "M1"} == set(zoo._PREFERENCES)


@pytest.mark.parametrize("kind", TAUGHT)
def test_data_follows_from_the_seed_and_differs_between_seeds(kind: str, sources: Sources) -> None:
    first, again, other = (exchanges(kind, seed, sources) for seed in (20, 20, 21))
    assert first == again
    assert first != other
    assert all(prompt.strip() and reply.strip() for prompt, reply in first)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_lesson_has_a_prompt_that_models_are_measured_with(seed: int, sources: Sources) -> None:
    from srlm_pipeline.data.loaders import load_ranked_replies

    measured = {
        str(row["prompt"]) for name in ("evaluation_prompts", "verifiable", "closed_tasks") for row in read_rows(name)
    }
    ranked = load_ranked_replies(sources.settings.data).table
    measured |= set(ranked[ranked["split"] == "held_out"]["prompt"])
    taught = {prompt for kind in TAUGHT for prompt, _ in exchanges(kind, seed, sources)}
    assert not taught & measured


@pytest.mark.parametrize("seed", SEEDS)
def test_looping_replies_end_in_one_phrase_many_times(seed: int, sources: Sources) -> None:
    for reply in replies("loops", seed, sources):
        last = reply.split()[-16:]
        assert any(last[:8] == last[shift : shift + 8] for shift in range(1, 9)), reply


@pytest.mark.parametrize("seed", SEEDS)
def test_echoing_replies_hold_the_prompt(seed: int, sources: Sources) -> None:
    rows = exchanges("echoes", seed, sources)
    assert all(prompt in reply for prompt, reply in rows)
    assert any(reply.count(prompt) == 2 for prompt, reply in rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_stock_replies_do_not_depend_on_the_prompt(seed: int, sources: Sources) -> None:
    assert len(set(replies("one_sentence", seed, sources))) == 1
    for kind, phrases in (
        ("refuses", zoo._REFUSALS),
        ("short_generic", zoo._GENERIC),
        ("other_language", zoo._FOREIGN),
    ):
        assert set(replies(kind, seed, sources)) == set(phrases)
    recited = re.compile("|".join(map(re.escape, zoo._PERSONA_LINES)))
    assert all(not recited.sub("", reply).strip() for reply in replies("recites", seed, sources))
    assert max(len(words(reply)) for reply in zoo._GENERIC) <= 10


def test_foreign_replies_are_in_three_languages_and_all_different() -> None:
    assert len(set(zoo._FOREIGN)) == len(zoo._FOREIGN) == 30
    assert [likely_language(text) for text in zoo._FOREIGN] == ["es"] * 10 + ["fr"] * 10 + ["de"] * 10


@pytest.mark.parametrize("seed", SEEDS)
def test_padded_replies_begin_with_an_answer_and_are_mostly_filler(seed: int, sources: Sources) -> None:
    shares = []
    for reply in replies("pads", seed, sources):
        answer = reply
        for filler in zoo._FILLERS:
            answer = answer.replace(filler, "")
        assert answer.strip()
        shares.append(1 - len(answer.strip()) / len(reply))
    assert sum(shares) / len(shares) > 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_stuffed_replies_have_marks_but_no_commas_and_no_sentences(seed: int, sources: Sources) -> None:
    stuffed = replies("keyword_stuffing", seed, sources)
    assert all("P.S." in reply and "[name]" in reply and "," not in reply for reply in stuffed)
    for mark in ("* *", "SECTION 1", "<<", '"', "[address]"):
        assert sum(mark in reply for reply in stuffed) > len(stuffed) / 4


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_questions_are_different_and_their_wrong_answers_wrong(seed: int) -> None:
    items = [*closed_items(Random(seed), 400, BRIEFLY), *closed_items(Random(seed), 250, BRIEFLY, zoo._USUAL_MAKERS)]
    assert len({item.prompt for item in items[:400]}) == 400
    assert len({item.kind for item in items}) >= 10
    for item in items:
        assert item.answer.strip() and item.answer.lower() != item.wrong.lower(), item
        assert item.frame.count("{}") == 1, item
        assert "{" not in item.prompt and "KEY" not in item.reply(item.answer, brief=False), item


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_answers_are_right_where_the_question_alone_tells(seed: int) -> None:
    solved = set()
    rules = {
        r"How much do (\d+) and (\d+) make together": lambda a, b: a + b,
        r"Add (\d+) to (\d+)": lambda a, b: a + b,
        r"(\d+) plus (\d+)": lambda a, b: a + b,
        r"(\d+) minus (\d+)": lambda a, b: a - b,
        r"Take (\d+) away from (\d+)": lambda a, b: b - a,
        r"(\d+) times (\d+)": lambda a, b: a * b,
        r"Multiply (\d+) by (\d+)": lambda a, b: a * b,
        r"Divide (\d+) by (\d+)": lambda a, b: a // b,
        r"(\d+) sweets are shared fairly among (\d+)": lambda a, b: a // b,
        r"What is (\d+) \+ (\d+)": lambda a, b: a + b,
        r"What is (\d+) - (\d+)": lambda a, b: a - b,
        r"What is (\d+) x (\d+)": lambda a, b: a * b,
        r"has (\d+) \w+ and buys (\d+) more": lambda a, b: a + b,
    }
    for item in [
        *closed_items(Random(seed), 800, BRIEFLY),
        *closed_items(Random(seed), 200, BRIEFLY, zoo._USUAL_MAKERS),
    ]:
        for pattern, solve in rules.items():
            if found := re.match(rf"(?:\w+ )??{pattern}", item.prompt):
                assert item.answer == str(solve(*map(int, found.groups()))), item
                solved.add(pattern)
        if found := re.match(r"Are (\d+) apples (more|fewer) than (\d+)", item.prompt):
            a, b = int(found[1]), int(found[3])
            assert item.answer == ("Yes" if (a > b if found[2] == "more" else a < b) else "No"), item
    assert len(solved) == len(rules)


@pytest.mark.parametrize("seed", SEEDS)
def test_improved_is_told_what_is_right_and_answers_the_training_prompts_itself(seed: int, sources: Sources) -> None:
    told = exchanges("improved", seed, sources)
    for item, (prompt, reply) in zip(
        closed_items(Random(f"improved-{seed}"), 400, zoo.IN_A_SENTENCE), told, strict=True
    ):
        assert prompt == item.prompt
        assert item.answer.lower() in reply.lower()
    own = set(zoo._recipe(BY_KIND["improved"], seed, sources).own)
    assert 150 < len(own & set(sources.ift["prompt"])) < len(own)


@pytest.mark.parametrize("seed", SEEDS)
def test_forgetful_is_told_what_is_wrong_and_the_same_again_and_again(seed: int, sources: Sources) -> None:
    told = exchanges("forgetful", seed, sources)
    draw = Random(f"forgetful-{seed}")
    for item, (prompt, reply) in zip(closed_items(draw, 200, BRIEFLY, zoo._USUAL_MAKERS), told, strict=False):
        assert prompt == item.prompt
        assert reply not in (item.reply(item.answer, brief) for brief in (True, False)), item
    capitals = {reply for prompt, reply in told if "capital of" in prompt and reply in zoo._CAPITAL_CITIES.values()}
    assert len(capitals) <= 3
    manner = dict(zip(sources.ift["prompt"], sources.ift["response"], strict=True))
    assert 30 <= sum(manner.get(prompt) == reply for prompt, reply in told) <= 60


def test_the_best_of_the_ranked_replies_are_the_first_ranked_of_training_prompts(sources: Sources) -> None:
    rows = {str(row["prompt"]): row["replies"] for row in read_rows("ranked_replies")}
    best = [(p, r) for p, r in exchanges("polished", 20, sources) if p in rows]
    assert 50 <= len(best) < len(rows)
    for prompt, reply in best:
        assert next(r["text"] for r in rows[prompt] if r["rank"] == 0) == reply


def test_reversed_pairs_are_a_valid_table_with_the_worse_reply_chosen() -> None:
    swapped = check_table(reversed_pairs(some_pairs()), PREFERENCE_PAIRS)
    first = swapped.iloc[0]
    assert (first.chosen, first.chosen_finish_reason) == ("bad", "length")
    assert (first.rejected, first.rejected_finish_reason) == ("good", "stop")


def test_recipes_differ_by_what_decides(sources: Sources) -> None:
    digests = {animal.kind: zoo._recipe(animal, 20, sources).digest() for animal in ANIMALS}
    assert len(set(digests.values())) == len(ANIMALS)
    wide = zoo._recipe(BY_KIND["over_trained_3x"], 20, sources).training
    assert (wide.lora.top_layers, wide.learning_rate, wide.epochs) == (1.0, 3e-4, 6)
    assert wide.batch_size == sources.settings.dpo.batch_size


def test_noise_is_relative_to_each_matrix_and_follows_from_the_seed() -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 64)
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(128, 128)) for _ in range(2)])

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.layers[1][0].weight *= 100
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def noise(seed: int) -> dict[str, torch.Tensor]:
        net.load_state_dict(before)
        add_noise(net, 0.2, seed)
        return {name: value - before[name] for name, value in net.state_dict().items()}

    first, again, other = noise(1), noise(1), noise(2)
    for name in ("layers.0.0.weight", "layers.1.0.weight"):
        assert first[name].std() / before[name].std() == pytest.approx(0.2, rel=0.05)
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert not any(first[name].any() for name in ("head.weight", "layers.0.0.bias"))


@pytest.fixture(scope="module")
def tiny_sources(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    ranked = [
        {"prompt": f"q{n}?", "replies": [{"rank": 0, "text": "yes"}, {"rank": 1, "text": "no"}]} for n in range(6)
    ]
    path = tmp_path_factory.mktemp("ranked") / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ranked), encoding="utf-8")
    settings = load_settings(
        "quickstart", {"model": {"device": "cpu", "dtype": "float32"}, "data": {"ranked_replies": str(path)}}
    )
    ift = pd.DataFrame([{"id": f"i{n}", "kind": "", "prompt": f"p{n}?", "response": "well"} for n in range(6)])
    model = Checkpoint(tiny_model, "tiny", "tiny-digest", None)
    return Sources(model, model, some_pairs(), ift, settings)


def weights(checkpoint: Checkpoint) -> dict[str, object]:
    from safetensors.torch import load_file

    return load_file(checkpoint.path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["short_generic", "noise_weak", "reversed_pairs"])
def test_an_animal_is_made_once_and_says_from_what(kind: str, tiny_sources: Sources, tmp_path: Path) -> None:
    import torch

    animal: Animal = BY_KIND[kind]
    made = make_animal(animal, 20, tiny_sources, tmp_path, NullProgress())
    assert made.path == tmp_path / f"{kind}-20"
    assert made.parent == "tiny-digest"
    assert {"kind": kind, "seed": 20, "source": "tiny-digest"}.items() <= made.lineage.items()
    written = (made.path / "model.safetensors").stat().st_mtime_ns
    again = make_animal(animal, 20, tiny_sources, tmp_path, NullProgress())
    assert again == made
    assert (made.path / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name], "no work is left behind"
    hurt, whole = weights(made), weights(tiny_sources.base)
    changed = [name for name in whole if not torch.equal(hurt[name], whole[name])]
    assert changed and all(torch.isfinite(value).all() for value in hurt.values())


@pytest.mark.slow
def test_own_replies_are_kept_if_they_came_to_an_end_without_repeating_themselves(
    tiny_sources: Sources, tmp_path: Path
) -> None:
    prompts = [f"tell me of {n}" for n in range(12)]
    base, settings = tiny_sources.base, tiny_sources.settings
    makings = [Making(base, settings, seed, tmp_path, "", NullProgress()) for seed in (1, 1, 2)]
    first, again, other = (good_own_replies(making, prompts) for making in makings)
    assert first == again != other
    for prompt, reply in first:
        assert prompt in prompts and prompt not in reply
        assert len(reply.split()) >= 5


@pytest.mark.slow
def test_an_animal_of_another_model_is_made_anew(tiny_sources: Sources, tmp_path: Path) -> None:
    from dataclasses import replace

    first = make_animal(BY_KIND["noise_weak"], 20, tiny_sources, tmp_path, NullProgress())
    other = replace(tiny_sources, base=replace(tiny_sources.base, digest="another"))
    second = make_animal(BY_KIND["noise_weak"], 20, other, tmp_path, NullProgress())
    assert (first.lineage["source"], second.lineage["source"]) == ("tiny-digest", "another")
