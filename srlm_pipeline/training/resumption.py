"""The checkpoints that an interrupted training goes on from.

A trainer writes a checkpoint file by file, and may be killed at any of them. So every whole one gets a marker, which is
written last and names its files with their sizes; what has none, or lacks a file of it, never counts.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from srlm_pipeline.files import replacing_file
from srlm_pipeline.training.ranks import is_first, meet

_MARKER = "srlm_complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def newest_whole(work: Path) -> tuple[Path, int] | None:
    """Return the newest whole checkpoint in a work folder and the step that it was made at; None if there is none.

    Those that are not whole are removed.
    """
    if not work.is_dir():
        return None
    found = [(int(name[1]), path) for path in work.iterdir() if (name := _NAME.fullmatch(path.name))]
    whole = {step: path for step, path in found if _is_whole(path)}
    for _, path in found:
        if path not in whole.values():
            shutil.rmtree(path, ignore_errors=True)
    return (whole[max(whole)], max(whole)) if whole else None


def marking_callback() -> Any:
    """Return the trainer's callback that marks a checkpoint once it is whole, and only then removes older ones."""
    from transformers import TrainerCallback

    class Mark(TrainerCallback):
        """Comes after the trainer has written all of a checkpoint."""

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Every process writes a file of its own.
            meet()
            if not is_first():
                return
            work = Path(args.output_dir)
            saved = work / f"checkpoint-{state.global_step}"
            with replacing_file(saved / _MARKER) as temporary:
                temporary.write_text(json.dumps(_sizes(saved)), encoding="utf-8")
            for other in work.iterdir():
                if _NAME.fullmatch(other.name) and other != saved:
                    shutil.rmtree(other, ignore_errors=True)

    return Mark()


def _is_whole(checkpoint: Path) -> bool:
    try:
        marked = json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(marked == _sizes(checkpoint))


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Return the sizes in bytes of a checkpoint's files, without its marker, by their paths in it."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files if path.name != _MARKER}
