"""A few of the moments that `chaos.py` goes through, on the seed alone."""

import random
from pathlib import Path

import pytest
from chaos import OFTEN, Chain, Starter, choose, compare, go_through
from processes import write_configuration

pytestmark = pytest.mark.slow


def test_whatever_is_done_to_it_the_same_command_continues_to_the_same_end(tiny_model: Path, tmp_path: Path) -> None:
    starter = Starter(write_configuration(tmp_path, tiny_model, **OFTEN))
    try:
        undisturbed = Chain(tmp_path / "undisturbed", ("run", "-n", "0"), starter)
        moments = undisturbed.moments()
        chain = Chain(tmp_path / "disturbed", undisturbed.words, starter)
        places = choose(moments, 3, random.Random(3))
        go_through(moments, places, ["KILL", "ENOSPC", "TERM"], chain, seed=3)
        assert [outcome.trouble for outcome in chain.outcomes if outcome.trouble] == []
        assert sum(outcome.moment is not None for outcome in chain.outcomes) >= 2
        compare(chain, undisturbed)
    finally:
        starter.close()
