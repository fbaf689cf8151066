"""Text generation: the engine protocol, engines, sampling, the per-item journal."""
