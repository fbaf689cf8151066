"""Who was made out of whom: the prompts of an iteration as trees, from inventions to what became of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Relative:
    """A prompt and what was made out of it.

    Attributes:
        prompt_id: Of the prompt.
        prompt: Its text.
        operator: That made it.
        children: Prompts made out of it, in the order of the table.
    """

    prompt_id: str
    prompt: str
    operator: str
    children: tuple[Relative, ...]

    @property
    def is_evolved(self) -> bool:
        """Whether an operator made it, or anything out of it."""
        return bool(self.children) or self.operator != "few_shot"


def family_trees(prompts: pd.DataFrame) -> list[Relative]:
    """Return the trees of a table, those with most descendants first; a prompt whose parent is elsewhere is a root.

    Args:
        prompts: Table `GENERATED_PROMPTS`.
    """
    here = set(prompts["prompt_id"])
    by_parent: defaultdict[str, list[str]] = defaultdict(list)
    rows = {row.prompt_id: row for row in prompts.itertuples()}
    for row in rows.values():
        # The several parents of an invention are examples, not what it was made of.
        made_of = row.parent_ids if row.operator != "few_shot" and row.parent_ids in here else ""
        by_parent[made_of].append(row.prompt_id)

    def grown(prompt_id: str) -> Relative:
        row = rows[prompt_id]
        return Relative(prompt_id, row.prompt, row.operator, tuple(map(grown, by_parent[prompt_id])))

    return sorted(map(grown, by_parent[""]), key=lambda tree: -_size(tree))


def tree_lines(tree: Relative, depth: int = 0) -> Iterator[str]:
    """Yield a tree as a nested Markdown list."""
    yield f"{'  ' * depth}- *{tree.operator}* {' '.join(tree.prompt.split())}"
    for child in tree.children:
        yield from tree_lines(child, depth + 1)


def _size(tree: Relative) -> int:
    return 1 + sum(map(_size, tree.children))
