"""Inventing prompts and filtering them."""
