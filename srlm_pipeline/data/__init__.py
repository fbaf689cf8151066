"""Instruction, judging and evaluation data, and chat formatting."""
