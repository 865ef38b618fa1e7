"""Speak OpenAI's images API over HTTP, with keys, limits, metrics and logs."""
