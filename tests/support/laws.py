"""How hypothesis runs here: the same examples every time, no deadline on a shared machine, nothing kept on disk."""

from __future__ import annotations

from hypothesis import settings

law = settings(derandomize=True, deadline=None, database=None, max_examples=60)
