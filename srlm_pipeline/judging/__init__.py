"""LLM-as-a-Judge: rubric, parser, judges, evaluation fine-tuning data."""
