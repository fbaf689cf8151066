"""Which rubric orders the embedded ranked replies as people do: one for all prompts, one for each kind, a checklist?

All judge by distribution, with the same model. How well the model tells the kinds of prompts is measured beside it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import RESULTS, ROOT, SMOKE_RESULTS, fresh_engine, load, model_folder, timed, write_record
from benchmarks.common import options as common_options
from benchmarks.table import fill_blocks, markdown_table

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling, TextEngine
    from srlm_pipeline.judging.judges import Judge
    from srlm_pipeline.judging.kinds import ToldKind

DOCUMENT = ROOT / "docs" / "judging.md"
SMOKE = {"prompts": 2}
SHORT, TOLD = "short", "by kind, told"
# Checklists that the record shows.
_SHOWN = 6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common_options(__doc__, repetitions=1)
    parser.add_argument(
        "--split",
        choices=["held_out", "all"],
        default="held_out",
        help="all: also the prompts that a model of the pipeline was trained on; fair to a base model alone",
    )
    parser.add_argument("--prompts", type=int, help="so many of them, all kinds in turn; without it all")
    parser.add_argument("--batch-size", type=int, default=16, help="rows together")
    parser.add_argument("--document", action="store_true", help="write the tables into docs/judging.md")
    args = parser.parse_args(arguments)
    if args.smoke:
        vars(args).update(SMOKE)
    from srlm_pipeline.cli import quiet_libraries
    from srlm_pipeline.config import DataSettings
    from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies

    quiet_libraries()
    data = DataSettings()
    everything = load_ranked_replies(data).table
    ranked = everything if args.split == "all" else everything[everything["split"] == args.split]
    chosen = in_turn(ranked.drop_duplicates("group_id"), args.prompts)
    ranked = ranked[ranked["group_id"].isin(chosen["group_id"])]
    loaded = load(model_folder(args), args)
    say(f"{len(chosen)} prompts with {len(ranked)} replies")
    record = Record(args, len(chosen), len(ranked))

    def engine() -> CountingEngine:
        return CountingEngine(fresh_engine(loaded, args.batch_size), lambda text: loaded.tokenizer(text).input_ids)

    for name, make in contenders().items():
        record.add(name, judged(make, engine(), ranked, with_kinds=name != TOLD, device=args.device), ranked)
    labelled = [
        (row.prompt, row.kind)
        for table in (load_instructions(data).table, everything.drop_duplicates("group_id"))
        for row in table.itertuples()
    ]
    labelled += [(row.prompt, row.kind) for row in load_evaluation_prompts(data).table.itertuples()]
    record.add_kinds(labelled[: args.prompts] if args.smoke else labelled, engine())
    if args.document:
        write_document(record.path)


def contenders() -> dict[str, Callable[[TextEngine], Judge]]:
    """Return the judges, by the name of what they judge by."""
    from srlm_pipeline.judging.checklist_judge import ChecklistJudge
    from srlm_pipeline.judging.judges import DistributionJudge
    from srlm_pipeline.judging.kind_judge import KindRubricJudge

    return {
        SHORT: lambda engine: DistributionJudge(engine, "short"),
        "additive": lambda engine: DistributionJudge(engine, "additive"),
        "by kind, as labelled": KindRubricJudge,
        TOLD: KindRubricJudge,
        "checklist": ChecklistJudge,
    }


class CountingEngine:
    """An engine that counts what is asked of it.

    Attributes:
        written: Tokens drawn.

    Args:
        engine: Does the work.
        encode: Turns a text into token ids.
    """

    def __init__(self, engine: TextEngine, encode: Callable[[str], Sequence[int]]) -> None:
        self._engine, self._encode = engine, encode
        self._texts: set[str] = set()
        self.written = 0

    @property
    def digest(self) -> str:
        """See `TextEngine`."""
        return self._engine.digest

    def render(self, text: str, reply_start: str = "") -> str:
        """See `TextEngine`."""
        return self._engine.render(text, reply_start)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """See `TextEngine`."""
        self._texts.update(request.prompt for request in requests)
        completions = self._engine.generate(requests, sampling, on_finished)
        self.written += sum(completion.n_tokens for completion in completions)
        return completions

    def next_token_distribution(
        self, prefixes: Sequence[str], options: Sequence[str], on_finished: Callable[[int], None] | None = None
    ) -> NDArray[Any]:
        """See `TextEngine`."""
        self._texts.update(prefixes)
        return self._engine.next_token_distribution(prefixes, options, on_finished)

    def read(self) -> int:
        """Return the tokens of all that was read, whatever several texts begin with counted once."""
        return distinct_tokens([self._encode(text) for text in self._texts])


def distinct_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens have to be read where what any sequences begin with is read once."""
    from srlm_pipeline.generation.prefill import common_length

    ordered = sorted(map(list, sequences))
    shared = sum(common_length([before, after]) for before, after in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def judged(
    make: Callable[[TextEngine], Judge], engine: CountingEngine, ranked: pd.DataFrame, with_kinds: bool, device: str
) -> dict[str, Any]:
    """Let a judge score replies; returns scores and raw judgements, what it took, and kinds as the judge saw them."""
    from srlm_pipeline.judging.judges import JudgeItem
    from srlm_pipeline.progress import NullProgress

    items = [
        JudgeItem(str(place), row.prompt, row.text, row.kind if with_kinds else None)
        for place, row in enumerate(ranked.itertuples())
    ]
    judgements, seconds = timed(lambda: make(engine).judge(items, NullProgress()), device)
    return {
        "judgements": judgements,
        "seconds": seconds / len(items),
        "tokens_read": engine.read() / len(items),
        "tokens_written": engine.written / len(items),
    }


def in_turn(prompts: pd.DataFrame, count: int | None) -> pd.DataFrame:
    """Return some prompts, one of each kind in turn, in the order of the data."""
    turns = prompts.assign(turn=prompts.groupby("kind").cumcount()).sort_values("turn", kind="stable")
    return turns.head(len(turns) if count is None else count)


class Record:
    """The results so far, on disk after each.

    Args:
        args: What the parser returned.
        prompts: How many.
        replies: How many.
    """

    def __init__(self, args: argparse.Namespace, prompts: int, replies: int) -> None:
        name = f"judging_rubrics-{Path(args.model).name}" if args.model else "judging_rubrics"
        self.path = (SMOKE_RESULTS if args.smoke else RESULTS) / f"{name}.json"
        self._about = {
            "model": Path(args.model).name if args.model else "SmolLM2-135M-Instruct",
            "device": args.device,
            "split": args.split,
            "prompts": prompts,
            "replies": replies,
        }
        self._rubrics: dict[str, dict[str, Any]] = {}
        self._agreement: dict[str, dict[str, Any]] = {}
        self._kinds: dict[str, Any] = {}

    def add(self, name: str, found: Mapping[str, Any], ranked: pd.DataFrame) -> None:
        """Measure a judge by what it said."""
        from srlm_pipeline.evaluation.judge_accuracy import agreement_by_prompt, measure_judge
        from srlm_pipeline.evaluation.measuring import accuracy_table
        from srlm_pipeline.evaluation.statistics import paired_difference

        table = accuracy_table(name, ranked, found["judgements"])
        self._agreement[name] = agreement_by_prompt(table)
        mine, short = self._agreement[name], self._agreement[SHORT]
        difference = paired_difference(list(mine.values()), [short[key] for key in mine])
        kinds = dict(zip(ranked["group_id"], ranked["kind"], strict=True))
        by_kind = {
            kind: measure_judge(table[table["group_id"].map(kinds) == kind]).pairwise_accuracy
            for kind in sorted(set(kinds.values()))
        }
        self._rubrics[name] = {
            "accuracy": asdict(measure_judge(table)),
            "beyond_short": difference._asdict(),
            "by_kind": by_kind,
            **{key: value for key, value in found.items() if key != "judgements"},
            **_details(name, ranked, found["judgements"]),
        }
        accuracy = self._rubrics[name]["accuracy"]
        say(
            f"{name}: pairwise {accuracy['pairwise_accuracy']:.1%} ({accuracy['pairwise_low']:.1%} to "
            f"{accuracy['pairwise_high']:.1%}), {found['seconds']:.2f} s a reply, {found['tokens_read']:.0f} tokens "
            f"read and {found['tokens_written']:.0f} written"
        )
        self.save()

    def add_kinds(self, labelled: Sequence[tuple[str, str]], engine: CountingEngine) -> None:
        """Measure how well the model tells kinds.

        Args:
            labelled: Prompts with their kinds.
            engine: Of the model.
        """
        from srlm_pipeline.judging.kinds import tell_kinds
        from srlm_pipeline.progress import NullProgress

        told = tell_kinds(engine, [prompt for prompt, _ in labelled], NullProgress())
        self._kinds = kinds_measured([kind for _, kind in labelled], told)
        say(f"kinds: {self._kinds['right']} of {self._kinds['prompts']} told right")
        self.save()

    def save(self) -> None:
        """Write everything, atomically."""
        write_record(self.path, {**self._about, "rubrics": self._rubrics, "kinds": self._kinds})


def kinds_measured(labels: Sequence[str], told: Sequence[ToldKind]) -> dict[str, Any]:
    """Return how often kinds, and their rubrics, are told right, and what is told instead most often."""
    from srlm_pipeline.judging.kind_rubrics import kind_rubrics

    rubrics = kind_rubrics()
    pairs = [(label, one.kind or "none") for label, one in zip(labels, told, strict=True)]
    errors = Counter(pair for pair in pairs if pair[0] != pair[1])
    return {
        "prompts": len(pairs),
        "right": sum(label == kind for label, kind in pairs),
        "right_rubric": sum(rubrics.of(label) is rubrics.of(kind) for label, kind in pairs),
        "kinds": len(rubrics.by_kind),
        "most_frequent_label": max(Counter(labels).values()),
        "told": dict(Counter(kind for _, kind in pairs).most_common()),
        "errors": [{"label": label, "told": kind, "prompts": n} for (label, kind), n in errors.most_common(10)],
    }


def _details(name: str, ranked: pd.DataFrame, judgements: Sequence[Any]) -> dict[str, Any]:
    """Return some of the checklists, and how many questions they have; nothing of other rubrics."""
    from srlm_pipeline.judging.kind_rubrics import kind_rubrics

    if name != "checklist":
        return {}
    asked = {
        prompt: [question["question"] for question in json.loads(judgement.raw)["questions"]]
        for prompt, judgement in zip(ranked["prompt"], judgements, strict=True)
    }
    rubrics = kind_rubrics()
    general = {d.question for rubric in (rubrics.general, *rubrics.by_kind.values()) for d in rubric.dimensions}
    questions = [question for own in asked.values() for question in own]
    return {
        "questions_per_prompt": len(questions) / len(asked),
        "general_share": sum(question in general for question in questions) / len(questions),
        "all_general": sum(all(question in general for question in own) for own in asked.values()),
        "examples": [{"prompt": p, "questions": q} for p, q in list(asked.items())[:_SHOWN]],
    }


def write_document(path: Path) -> None:
    """Fill the blocks of docs/judging.md that belong to a record."""
    from srlm_pipeline.files import replacing_file

    blocks = {path.stem: render(json.loads(path.read_text(encoding="utf-8")))}
    text = fill_blocks(DOCUMENT.read_text(encoding="utf-8"), blocks, keep=True)
    with replacing_file(DOCUMENT) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(record: Mapping[str, Any]) -> str:
    """Return a record, finished or not, as Markdown: all kinds together, each kind, and how kinds are told."""
    rubrics = record["rubrics"]
    overall = [
        [
            name,
            _interval(r["accuracy"]),
            _share(r["accuracy"]["length_balanced_accuracy"]),
            "" if name == SHORT else _points(r["beyond_short"]),
            _share(r["accuracy"]["parse_rate"]),
            f"{r['seconds']:.2f}",
            f"{r['tokens_read']:.0f}",
            f"{r['tokens_written']:.0f}",
        ]
        for name, r in rubrics.items()
    ]
    columns = ["rubric", "pairwise (95 %)", "length-balanced", "beyond short (95 %)", "readable"]
    columns += ["seconds", "tokens read", "tokens written"]
    kinds = list(rubrics[SHORT]["by_kind"])
    each = [[kind, *(_share(r["by_kind"][kind]) for r in rubrics.values())] for kind in kinds]
    parts = [
        f"{record['model']}, {record['prompts']} prompts with {record['replies']} replies, "
        f"{rubrics[SHORT]['accuracy']['n_pairs']} ordered pairs; the longer reply is the better one in "
        f"{_share(rubrics[SHORT]['accuracy']['length_baseline'])} of them. Seconds and tokens are for each reply, on "
        f"{record['device']} (threads: {record['machine']['threads']}; {record['date'][:10]}); what any texts "
        "begin with is counted once.",
        markdown_table(columns, overall),
        "Pairwise accuracy by kind:",
        markdown_table(["kind", *rubrics], each),
    ]
    if told := record["kinds"]:
        errors = "; ".join(f"{e['label']} taken for {e['told']} ({e['prompts']})" for e in told["errors"][:5])
        parts.append(
            f"Kinds: {told['right']} of {told['prompts']} prompts are told right "
            f"({_share(told['right'] / told['prompts'])}; chance {_share(1 / told['kinds'])}), and of "
            f"{_share(told['right_rubric'] / told['prompts'])} the rubric. The most frequent errors: {errors}."
        )
    if checklist := rubrics.get("checklist"):
        parts.append(
            f"Checklists have {checklist['questions_per_prompt']:.1f} questions on average, of which "
            f"{_share(checklist['general_share'])} are general ones of the kind; {checklist['all_general']} of "
            f"{record['prompts']} have no other."
        )
    return "\n\n".join(parts)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(accuracy: Mapping[str, float]) -> str:
    return f"{accuracy['pairwise_accuracy']:.1%} ({accuracy['pairwise_low']:.1%} to {accuracy['pairwise_high']:.1%})"


def _points(difference: Mapping[str, float]) -> str:
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def say(text: str) -> None:
    """Print a line at once."""
    print(f"[judging_rubrics] {text}", flush=True)


if __name__ == "__main__":
    main()
