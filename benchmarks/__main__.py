"""Runs all benchmarks, each in a process of its own, and fills the tables of docs/performance.md."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("novelty", "startup", "generation", "judging", "growth", "training", "loss_curves", "iteration")


def main() -> None:
    # What is given here goes to each of them: --smoke, --device cuda, ...
    for name in (*BENCHMARKS, "table"):
        arguments = [argument for argument in sys.argv[1:] if name != "table" or argument == "--smoke"]
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)


if __name__ == "__main__":
    main()
