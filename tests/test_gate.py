"""The gate in front of the champion, on fakes whose faults are known; `benchmarks.gate` tries it on real models."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import gate, trivial
from benchmarks.zoo import ANIMALS
from srlm_pipeline.checks.vital_signs import SIGNS
from srlm_pipeline.config import PromotionSettings
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.evidence import compare_all, opinion
from srlm_pipeline.evaluation.promotion import Evidence, decide_promotion
from srlm_pipeline.tables import ASSESSED_REPLIES, JUDGE_ACCURACY, LIKELIHOOD, VERIFIABLE, check_table

SETTINGS = PromotionSettings()
COUNTS = {"evaluation": 70, "verifiable": 100, "closed": 392}
# What a sound model of the quickstart's size is like: shares of replies, of tasks, of instructions; cosine; nats.
SOUND = {
    **dict.fromkeys(SIGNS, 0.02),
    "loops": 0.1,
    "right": 0.5,
    "followed": 0.35,
    "nearness": 0.5,
    "nats": 2.5,
    "judge": 0.65,
}
DAMAGES = {
    "loops": {"loops": 0.4},
    "echoes": {"echoes": 0.35},
    "recites": {"recites": 0.3},
    "empty": {"empty": 0.3},
    "refuses": {"refuses": 0.4},
    "other_language": {"other_language": 0.4},
    "forgetful": {"right": 0.3},
    "follows nothing": {"followed": 0.1},
    "beside the point": {"nearness": 0.35},
    "surprised by people": {"nats": 3.4},
    "judges the wrong way": {"judge": 0.2},
    "over-trained": {"loops": 0.3, "recites": 0.1, "right": 0.4, "nearness": 0.4},
}


def fake(name: str, seed: int = 0, **changes: float) -> Assessment:
    """A model whose items are met with the given shares; the same seed gives every model the same luck."""
    shares = SOUND | changes
    draw = np.random.default_rng(seed)
    luck = {part: draw.random((n, len(SIGNS) + 2)) for part, n in COUNTS.items()}
    own = np.random.default_rng([seed, *name.encode()])
    tables = []
    for part, n in COUNTS.items():
        # Of some items each model has luck of its own.
        rolled = np.where(own.random((n, 1)) < 0.3, own.random(luck[part].shape), luck[part])
        signs = {sign: rolled[:, place] < shares[sign] for place, sign in enumerate(SIGNS)}
        near = np.clip(shares["nearness"] + 0.2 * (rolled[:, -1] - 0.5), -1, 1)
        tables.append(
            pd.DataFrame(
                {
                    "model": name,
                    "part": part,
                    "prompt_id": [f"{part}-{i}" for i in range(n)],
                    "kind": "",
                    "prompt": [f"prompt {i}" for i in range(n)],
                    "reply": [f"{name} says {i}" for i in range(n)],
                    "n_tokens": 10,
                    "finish_reason": "stop",
                    **signs,
                    "nearness": near if part == "evaluation" else np.nan,
                    "right": (rolled[:, -2] < shares["right"]).astype(float) if part == "closed" else np.nan,
                }
            )
        )
    replies = pd.concat(tables, ignore_index=True)
    asked = replies[replies["part"] == "verifiable"]
    followed = (luck["verifiable"][:, -2] < shares["followed"]).astype(int)
    groups, ranks = np.repeat(np.arange(35), 4), np.tile(np.arange(4), 35)
    noise = np.random.default_rng(seed + 1).random(len(groups))
    return Assessment(
        name,
        f"digest of {name}",
        check_table(replies[list(ASSESSED_REPLIES.columns)], ASSESSED_REPLIES),
        check_table(
            pd.DataFrame(
                {
                    "model": name,
                    "key": asked["prompt_id"],
                    "prompt": asked["prompt"],
                    "reply": asked["reply"],
                    "instructions": "punctuation:no_comma",
                    "n_instructions": 1,
                    "n_strict": followed,
                    "n_loose": followed,
                    "failed": ["" if f else "punctuation:no_comma" for f in followed],
                }
            )[list(VERIFIABLE.columns)],
            VERIFIABLE,
        ),
        check_table(
            pd.DataFrame(
                {
                    "model": name,
                    "group_id": [f"g{g}" for g in groups],
                    "rank": ranks,
                    "n_characters": 100,
                    "score": np.clip(2.5 + (shares["judge"] - 0.5) * (1.5 - ranks) * 4 + 4 * (noise - 0.5), 0, 5),
                }
            )[list(JUDGE_ACCURACY.columns)],
            JUDGE_ACCURACY,
        ),
        check_table(
            pd.DataFrame(
                {
                    "model": name,
                    "group_id": [f"g{g}" for g in range(35)],
                    "nats": 50 * (shares["nats"] + 0.5 * (np.random.default_rng(seed + 2).random(35) - 0.5)),
                    "n_tokens": 50,
                }
            )[list(LIKELIHOOD.columns)],
            LIKELIHOOD,
        ),
    )


def failures(new: Assessment, champion: Assessment, base: Assessment, win_rate: tuple[int, int, int] = (60, 5, 5)):
    said = opinion(win_rate, SETTINGS, 0.6)
    assert said is not None
    rules = decide_promotion(
        Evidence(
            champion=champion.model,
            opinion=said,
            # As out of the box: the arbiter is M1, and delighted.
            dependences=("M1",),
            compared=compare_all(new, {"champion": champion, "baseline": base, "base": base}, SETTINGS, 400),
            people=None,
            length_growth=1.0,
        ),
        SETTINGS,
    )
    return [rule.name for rule in rules if rule.passed is False]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", DAMAGES)
def test_no_damaged_model_passes_however_much_the_loop_likes_it(kind: str, seed: int) -> None:
    base = fake("base", seed)
    assert failures(fake("damaged", seed, **DAMAGES[kind]), base, base)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_sound_model_takes_the_place_of_a_damaged_champion(kind: str, seed: int) -> None:
    base = fake("base", seed)
    assert failures(base, fake("damaged", seed, **DAMAGES[kind]), base, (5, 5, 60)) == []


def test_the_same_model_again_harms_nothing_and_gains_nothing() -> None:
    base = fake("base")
    (only,) = failures(base, base, base)
    assert only.startswith("better than the champion")


def test_what_harms_is_named() -> None:
    base = fake("base")
    assert "no harm: closed tasks solved" in failures(fake("damaged", right=0.3), base, base)
    assert "no harm: replies that go in circles" in failures(fake("damaged", loops=0.4), base, base)


def test_a_model_that_learned_something_and_lost_nothing_passes() -> None:
    base = fake("base")
    assert failures(fake("improved", right=0.65), base, base, (30, 10, 30)) == []


@pytest.mark.parametrize("name", trivial.REPLIES)
def test_replies_that_say_nothing_follow_next_to_nothing_and_solve_next_to_nothing(name: str) -> None:
    found = trivial.measure(name)
    assert found.followed <= 0.05
    assert found.solved <= 0.05


def test_every_damaged_model_stands_trial_on_both_sides() -> None:
    held = gate.trials(ANIMALS, [1, 2])
    damaged = [animal for animal in ANIMALS if animal.damaged]
    assert len(damaged) >= 12
    assert sum(trial.damaged for trial in held) == 2 * len(damaged)
    assert {(t.champion, t.model) for t in held if t.damaged} <= {(t.model, t.champion) for t in held if not t.damaged}
