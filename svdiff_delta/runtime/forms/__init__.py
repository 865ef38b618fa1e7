"""The forms in which a shifted layer computes: one file each, and one line here; a table of costs chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .additive import Additive
from .factored import Factored
from .form import LayerForm
from .resident import Resident

FORMS: Final[Mapping[str, LayerForm]] = {form.name: form for form in (Factored(), Additive(), Resident())}
"""The forms of layers that two products stand for, by name."""
