"""Programs that read prompts and replies: no model takes part, and nothing is learned."""
