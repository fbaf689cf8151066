"""One of the processes that train a stage together: `python -m srlm_pipeline.training.worker FOLDER`, by torchrun.

The folder holds the order (`exchange.py`). All processes do the same; the first one speaks, saves and decides.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from srlm_pipeline.errors import SrlmError
from srlm_pipeline.files import disk_trouble
from srlm_pipeline.training.agent import end_with_parent

# While the first process measures at a look, the others wait. One that died is noticed by torchrun.
_PATIENCE = timedelta(days=2)


def work(folder: Path) -> None:
    """Do what is ordered in a folder, as one of several processes.

    Args:
        folder: Of the exchange.
    """
    from accelerate import PartialState

    from srlm_pipeline.progress import NullProgress
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.early_stopping import EarlyStopping
    from srlm_pipeline.training.exchange import Exchange, ToldProgress, ToldWarnings, asking
    from srlm_pipeline.training.ranks import is_first, meet

    exchange = Exchange(folder)
    order = exchange.order()
    job: TrainingJob = order.arguments[0]
    on_cpu = job.model.device == "cpu"
    PartialState(cpu=on_cpu, timeout=_PATIENCE)
    device = "cpu" if on_cpu else f"cuda:{os.environ['LOCAL_RANK']}"
    if is_first():
        logging.getLogger("srlm_pipeline").addHandler(ToldWarnings(exchange))
    job = replace(
        job,
        model=job.model.model_copy(update={"device": device}),
        progress=ToldProgress(exchange) if is_first() else NullProgress(),
    )
    rest = [replace(a, compare=asking(exchange)) if isinstance(a, EarlyStopping) else a for a in order.arguments[1:]]
    run = order.stage(job, *rest)
    if is_first():
        run.loaded.model.save_pretrained(exchange.model)
        run.loaded.tokenizer.save_pretrained(exchange.model)
        exchange.finish(
            {
                "history": list(run.history),
                "n_examples": run.n_examples,
                "n_left_out": run.n_left_out,
                "n_cut": run.n_cut,
            }
        )
    meet()


def main(folder: Path) -> None:
    """Work, and leave behind why that failed."""
    from srlm_pipeline.training.exchange import Exchange

    rank = int(os.environ["RANK"])
    (folder / f"process-{rank}").write_text(str(os.getpid()), encoding="utf-8")
    try:
        work(folder)
    except Exception as error:
        sentence = str(error) if isinstance(error, SrlmError) else disk_trouble(error)
        Exchange(folder).fail(rank, sentence, traceback.format_exc())
        raise


if __name__ == "__main__":
    end_with_parent()
    main(Path(sys.argv[1]))
