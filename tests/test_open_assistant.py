"""Open Assistant, flat and nested: the same groups, whatever the order, and nothing that is filtered."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import DataSettings
from srlm_pipeline.data.loaders import (
    LoadedTable,
    load_evaluation_prompts,
    load_instructions,
    load_ranked_replies,
)
from srlm_pipeline.data.open_assistant import MessageFilter, first_turns, ranked_replies
from srlm_pipeline.data.rows import RowReport
from srlm_pipeline.errors import DataError, EmptyDataError
from srlm_pipeline.tables import INSTRUCTIONS, RANKED_REPLIES, check_table

OASST = Path(__file__).parents[2] / "shared" / "data" / "oasst"
MESSAGES, TREES = OASST / "oasst1_messages_sample.jsonl", OASST / "trees_export_sample.jsonl"
needs_samples = pytest.mark.skipif(not OASST.is_dir(), reason="the shared data is not here")

Message = dict[str, Any]


def message(key: str, text: str, *replies: Message, **fields: Any) -> Message:
    """A message with its replies nested in it, approved and English."""
    plain = {"message_id": key, "text": text, "lang": "en", "deleted": False, "review_result": True, "rank": None}
    return plain | fields | {"replies": list(replies)}


def prompt(key: str, text: str, *replies: Message, **fields: Any) -> Message:
    return message(key, text, *replies, role="prompter", **fields)


def reply(key: str, text: str, rank: int | None, *replies: Message, **fields: Any) -> Message:
    return message(key, text, *replies, **{"role": "assistant", "rank": rank} | fields)


def flat(node: Message, parent: str | None = None, tree_state: str = "ready_for_export") -> Iterator[Message]:
    """The messages of a tree as the hub dataset has them."""
    yield {k: v for k, v in node.items() if k != "replies"} | {"parent_id": parent, "tree_state": tree_state}
    for child in node["replies"]:
        yield from flat(child, node["message_id"], tree_state)


def nested(node: Message, tree_state: str = "ready_for_export") -> Message:
    """A line of the tree export."""
    return {"message_tree_id": node["message_id"], "tree_state": tree_state, "prompt": node}


SEA = prompt(
    "sea", "Why is the sea salty?",
    reply("sea-2", "Because of rocks.", 2),
    reply("sea-0", "Rivers carry minerals.", 0, prompt("sea-0-0", "And lakes?", reply("sea-0-0-0", "They drain.", 0))),
    reply("sea-1", "Minerals.", 1),
)  # fmt: skip
SKY = prompt("sky", "Why is the sky blue?", reply("sky-0", "Scattering.", 0), reply("sky-1", "It just is.", 1))
TEA = prompt("tea", "How is tea made?", reply("tea-0", "With hot water.", 0))


@pytest.fixture
def write(tmp_path: Path):
    def lines(rows: list[Any], name: str = "messages.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return str(path)

    return lines


def groups(loaded: LoadedTable) -> dict[str, list[str]]:
    ordered = loaded.table.sort_values(["group_id", "rank"])
    return {key: own["text"].tolist() for key, own in ordered.groupby("group_id")}


@pytest.mark.parametrize("written", ["flat", "nested"])
def test_best_first_reply_teaches_answering_and_two_ranked_ones_teach_judging(write, written: str) -> None:
    trees = [SEA, SKY, TEA]
    rows = [row for tree in trees for row in flat(tree)] if written == "flat" else [nested(tree) for tree in trees]
    path = write(rows)
    ift = load_instructions(DataSettings(ift=path))
    pairs = ift.table[["id", "prompt", "response"]].to_numpy().tolist()
    assert pairs == [
        ["sea", "Why is the sea salty?", "Rivers carry minerals."],
        ["sky", "Why is the sky blue?", "Scattering."],
        ["tea", "How is tea made?", "With hot water."],
    ]
    assert ift.left_out == {}
    judging = load_ranked_replies(DataSettings(ranked_replies=path))
    assert groups(judging) == {
        "sea": ["Rivers carry minerals.", "Minerals.", "Because of rocks."],
        "sky": ["Scattering.", "It just is."],
    }
    assert judging.left_out == {"prompt with fewer than two ranked replies": 1}
    asked = load_evaluation_prompts(DataSettings(evaluation_prompts=path))
    assert asked.table["id"].tolist() == ["sea", "sky", "tea"]


def test_both_from_one_file_share_no_prompt_and_lose_none(write) -> None:
    trees = [prompt(f"p{n}", f"Prompt {n}?", reply(f"p{n}-0", "a", 0), reply(f"p{n}-1", "b", 1)) for n in range(30)]
    path = write([row for tree in trees for row in flat(tree)])
    data = DataSettings(ift=path, ranked_replies=path)
    trained, judged = set(load_instructions(data).table["id"]), set(load_ranked_replies(data).table["group_id"])
    assert not trained & judged
    assert trained | judged == {f"p{n}" for n in range(30)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"deleted": True}, "deleted"),
        ({"lang": "de"}, "in another language"),
        ({"review_result": False}, "not approved by reviewers"),
        ({"review_result": None}, "not approved by reviewers"),
        ({"text": " \n"}, "without text"),
    ],
)
@pytest.mark.parametrize("whose", ["prompt", "reply"])
def test_what_is_filtered_is_not_used_and_counted(write, changes: Message, reason: str, whose: str) -> None:
    tree = copy.deepcopy(SEA)
    (tree if whose == "prompt" else tree["replies"][2]).update(changes)
    loaded = load_ranked_replies(DataSettings(ranked_replies=write([*flat(tree), *flat(SKY), *flat(prompt_like(SKY))])))
    assert loaded.left_out == {f"{whose} {reason}": 1}
    assert groups(loaded).get("sea") == (None if whose == "prompt" else ["Rivers carry minerals.", "Because of rocks."])


def prompt_like(tree: Message) -> Message:
    """Another conversation of the same shape, so that there are enough prompts to be split."""
    replies = [child | {"message_id": f"other {child['message_id']}"} for child in tree["replies"]]
    return tree | {"message_id": "other", "text": f"Other: {tree['text']}", "replies": replies}


def test_best_reply_that_is_left_out_is_not_replaced_by_the_second_best(write) -> None:
    tree = copy.deepcopy(SEA)
    tree["replies"][1]["deleted"] = True
    loaded = load_instructions(DataSettings(ift=write([*flat(tree), *flat(SKY)])))
    assert loaded.table["id"].tolist() == ["sky"]
    assert loaded.left_out == {"reply deleted": 1, "prompt without a reply of rank 0": 1}


def test_reply_without_a_rank_is_left_out_even_if_it_is_the_only_one(write) -> None:
    alone = prompt("alone", "Only one?", reply("alone-0", "Yes.", None))
    loaded = load_instructions(DataSettings(ift=write([nested(alone), nested(SKY)])))
    assert loaded.table["id"].tolist() == ["sky"]
    assert loaded.left_out == {"reply without a rank": 1, "prompt without a reply of rank 0": 1}


def test_of_replies_with_the_same_text_the_best_stays(write) -> None:
    twins = prompt("twins", "Which?", reply("a", "This.", 2), reply("b", " This.", 1), reply("c", "That.", 0))
    loaded = load_ranked_replies(DataSettings(ranked_replies=write([*flat(twins), *flat(SEA), *flat(SKY)])))
    own = loaded.table[loaded.table["group_id"] == "twins"]
    assert dict(zip(own["text"], own["rank"], strict=True)) == {"That.": 0, "This.": 1}
    assert loaded.left_out == {"reply with the text of a better one": 1}


@pytest.mark.parametrize("state", ["prompt_lottery_waiting", "aborted_low_grade", "halted_by_moderator"])
def test_unfinished_trees_are_left_out(write, state: str) -> None:
    for rows in ([*flat(SEA, tree_state=state), *flat(SKY)], [nested(SEA, state), nested(SKY)]):
        loaded = load_instructions(DataSettings(ift=write(rows)))
        assert loaded.table["id"].tolist() == ["sky"]
        assert loaded.left_out == {"prompt in a tree that is not ready for export": 1}


def test_replies_whose_prompt_is_missing_and_replies_by_prompters_are_left_out(write) -> None:
    own_answer = prompt("own", "Who answers?", prompt("own-0", "I do.", rank=0), reply("own-1", "Me.", 1))
    rows = [*flat(SKY), *list(flat(SEA))[1:], *flat(own_answer)]
    loaded = load_instructions(DataSettings(ift=write(rows)))
    assert loaded.table["id"].tolist() == ["sky"]
    assert loaded.left_out == {
        "message whose parent is missing": 3, "reply not by the assistant": 1, "prompt without a reply of rank 0": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "used"), [({}, True), ({"review_count": 3}, True), ({"review_count": 0, "synthetic": True}, False)]
)
def test_without_a_verdict_the_number_of_reviews_decides(write, fields: Message, used: bool) -> None:
    tree = {k: v for k, v in SKY.items() if k not in ("review_result", "deleted", "lang")} | fields
    path = write([nested(tree), nested(SEA)])
    assert ("sky" in set(load_instructions(DataSettings(ift=path)).table["id"])) == used
    assert "sky" in set(load_instructions(DataSettings(ift=path, include_unreviewed=True)).table["id"])


@pytest.mark.parametrize(
    ("used", "expected"), [(["pt"], ["sea", "sky"]), (["pt-BR"], ["sea"]), (["PT_br"], ["sea"]), (["p"], None)]
)
def test_a_language_stands_for_its_regions(write, used: list[str], expected: list[str] | None) -> None:
    path = write([nested({**SEA, "lang": "pt-BR"}), nested({**SKY, "lang": "pt"})])
    data = DataSettings(evaluation_prompts={"source": path, "languages": used})
    if expected is None:
        with pytest.raises(EmptyDataError, match="in another language"):
            load_evaluation_prompts(data)
    else:
        assert load_evaluation_prompts(data).table["id"].tolist() == expected


@pytest.mark.parametrize(("languages", "expected"), [(["de"], ["sky"]), (["en", "de"], ["sea", "sky"]), ([], None)])
def test_languages_can_be_chosen(write, languages: list[str], expected: list[str] | None) -> None:
    german = copy.deepcopy(SKY)
    for node in (german, *german["replies"]):
        node["lang"] = "de"
    french = prompt("tea", "Du thé ?", reply("tea-0", "Oui.", 0, lang="fr"), lang="fr")
    path = write([nested(tree) for tree in (SEA, german, french)])
    loaded = load_instructions(DataSettings(ift={"source": path, "languages": languages}))
    assert loaded.table["id"].tolist() == (expected or ["sea", "sky", "tea"])


BROKEN_MESSAGES = [
    ({"message_id": "x", "role": "prompter"}, "text: Field required"),
    ({"message_id": "x", "text": "t", "role": "assistant", "rank": -1}, "rank: "),
    ({"message_id": "x", "text": "t", "role": "assistant", "rank": "best"}, "rank: "),
    ({"message_id": "x", "text": 5, "role": "assistant"}, "text: "),
    ({"message_id": "sky", "text": "t", "role": "prompter"}, "message_id occurs more than once"),
    ("{", "not valid JSON"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN_MESSAGES)
def test_broken_message_is_named_by_file_line_and_field_or_counted(write, row: Any, reason: str) -> None:
    path = write([*flat(SKY), row, *flat(SEA)])
    with pytest.raises(DataError, match=rf"messages\.jsonl, line 4: {reason}") as caught:
        load_instructions(DataSettings(ift=path))
    assert caught.value.line == 4
    loaded = load_instructions(DataSettings(ift=path, bad_rows="skip"))
    assert loaded.table["id"].tolist() == ["sky", "sea"]
    assert [(kept.startswith(f"bad row: {reason}"), n) for kept, n in loaded.left_out.items()] == [(True, 1)]


def test_broken_reply_in_a_tree_is_named_by_its_place_or_counted_alone(write) -> None:
    tree = copy.deepcopy(SEA)
    del tree["replies"][2]["text"]
    path = write([nested(SKY), nested(tree)], "trees.jsonl")
    with pytest.raises(DataError, match=r"trees\.jsonl, line 2: prompt\.replies\.2\.text: Field required"):
        load_instructions(DataSettings(ift=path))
    loaded = load_instructions(DataSettings(ift=path, bad_rows="skip"))
    assert loaded.table["id"].tolist() == ["sky", "sea"]
    assert loaded.left_out == {"bad row: prompt.replies.text: Field required": 1}


def test_tree_without_a_prompt_is_a_broken_row(write) -> None:
    path = write([nested(SKY), {"message_tree_id": "x", "prompt": None}])
    with pytest.raises(DataError, match="line 2: prompt: "):
        load_instructions(DataSettings(ift=path))


def test_a_limit_takes_the_first_prompts(write) -> None:
    path = write([row for tree in (SEA, SKY, TEA) for row in flat(tree)])
    assert load_instructions(DataSettings(ift=path, ift_limit=2)).table["id"].tolist() == ["sea", "sky"]


def test_the_assets_show_what_was_left_out(write, tmp_path: Path) -> None:
    import dagster as dg

    from srlm_pipeline.definitions import defs

    path = write([*flat(SEA), *flat(SKY), *flat(TEA), *flat(prompt_like(SKY)), "{"])
    data = {"ift": "embedded", "ranked_replies": path, "evaluation_prompts": path, "bad_rows": "skip"}
    overrides = {"storage": str(tmp_path), "data": data}
    assets = ("ift_dataset", "ranked_replies", "evaluation_prompts")
    done = defs.resolve_job_def("seed").execute_in_process(
        run_config={"resources": {"project": {"config": {"overrides": overrides}}}},
        asset_selection=[dg.AssetKey(asset) for asset in assets],
    )
    shown = [done.asset_materializations_for_node(asset)[0].metadata["left_out"].value for asset in assets]
    broken = {"bad row: not valid JSON": 1}
    assert shown == [{}, {"prompt with fewer than two ranked replies": 1} | broken, broken]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Any trees: some messages deleted, unreviewed, in another language, without rank, or of the wrong role."""
    numbers = iter(range(10_000))

    def node(depth: int) -> Message:
        children = [node(depth + 1) for _ in range(draw(st.integers(0, 3 if depth < 2 else 0)))]
        return message(
            f"m{next(numbers)}",
            draw(st.sampled_from(["a", "b", "A ", "c", ""])),
            *children,
            role=draw(st.sampled_from(["prompter", "assistant"])) if draw(st.integers(0, 5)) == 0 else role_at(depth),
            lang=draw(st.sampled_from(["en", "en", "de", None])),
            deleted=draw(st.sampled_from([False, False, True, None])),
            review_result=draw(st.sampled_from([True, True, False, None])),
            rank=draw(st.sampled_from([None, 0, 1, 2])) if depth % 2 else None,
        )

    return [node(0) for _ in range(draw(st.integers(0, 4)))]


def role_at(depth: int) -> str:
    return "assistant" if depth % 2 else "prompter"


def outcome(rows: list[Message], is_nested: bool, allowed: MessageFilter) -> tuple[dict[str, Any], dict[str, int]]:
    report = RowReport("rows", "line", "fail")
    turns = first_turns(enumerate(rows, start=1), is_nested, allowed, report)
    found = {t.id: (t.prompt, [(r.text, r.rank) for r in ranked_replies(t, allowed, report)]) for t in turns}
    return found, dict(report.left_out)


@given(conversations(), st.randoms(use_true_random=False), st.booleans(), st.sampled_from([("en",), (), ("de", "en")]))
def test_trees_and_their_messages_in_any_order_give_the_same_groups(
    trees: list[Message], random: Any, unreviewed: bool, languages: tuple[str, ...]
) -> None:
    allowed = MessageFilter(languages, unreviewed)
    messages = [row for tree in trees for row in flat(tree)]
    random.shuffle(messages)
    assert outcome(messages, False, allowed) == outcome([nested(tree) for tree in trees], True, allowed)


@given(conversations())
def test_only_what_passes_every_filter_is_used_and_everything_else_is_counted(trees: list[Message]) -> None:
    def usable(node: Message, role: str) -> bool:
        own = node["role"] == role and node["lang"] in ("en", None) and not node["deleted"]
        return own and node["review_result"] is True and bool(node["text"].strip())

    found, left_out = outcome([nested(tree) for tree in trees], True, MessageFilter(("en",), False))
    used = [tree for tree in trees if usable(tree, "prompter")]
    assert set(found) == {tree["message_id"] for tree in used}
    for tree in used:
        best: dict[str, int] = {}
        for child in tree["replies"]:
            if usable(child, "assistant") and child["rank"] is not None:
                text = child["text"].strip()
                best[text] = min(best.get(text, 99), child["rank"])
        kept = found[tree["message_id"]][1]
        assert {text.strip(): rank for text, rank in kept} == best
        assert [rank for _, rank in kept] == sorted(rank for _, rank in kept)
    n_replies = sum(len(tree["replies"]) for tree in used)
    n_kept = sum(len(replies) for _, replies in found.values())
    assert sum(left_out.values()) == len(trees) - len(used) + n_replies - n_kept


# The counts below were found by an independent look at the files.
@needs_samples
def test_sample_of_messages_has_sixty_prompts_with_172_different_ranked_replies() -> None:
    ift = load_instructions(DataSettings(ift=str(MESSAGES)))
    assert len(check_table(ift.table, INSTRUCTIONS)) == 60
    judging = load_ranked_replies(DataSettings(ranked_replies=str(MESSAGES)))
    assert len(check_table(judging.table, RANKED_REPLIES)) == 172
    assert judging.table["group_id"].nunique() == 60
    assert judging.left_out == {"reply not approved by reviewers": 3, "reply with the text of a better one": 1}


@needs_samples
def test_sample_of_messages_in_both_places_is_shared_out() -> None:
    data = DataSettings(ift=str(MESSAGES), ranked_replies=str(MESSAGES))
    trained, judged = set(load_instructions(data).table["id"]), set(load_ranked_replies(data).table["group_id"])
    assert (len(trained), len(judged), len(trained & judged)) == (33, 27, 0)


@needs_samples
def test_sample_of_trees_holds_seven_answered_but_unranked_and_fourteen_unreviewed_prompts() -> None:
    trees = str(TREES)
    with pytest.raises(EmptyDataError, match="14 prompt not approved by reviewers, 7 reply without a rank"):
        load_instructions(DataSettings(ift=trees))
    assert len(load_evaluation_prompts(DataSettings(evaluation_prompts=trees)).table) == 7
    judging = load_ranked_replies(DataSettings(ranked_replies=trees, include_unreviewed=True))
    assert (judging.table["group_id"].nunique(), len(judging.table)) == (14, 56)
    assert len(load_instructions(DataSettings(ift=trees, include_unreviewed=True)).table) == 14
