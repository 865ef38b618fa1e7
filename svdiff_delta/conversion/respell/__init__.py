"""Spell an adapter anew in another dialect: names change, and the numbers of its tensors do not."""

from __future__ import annotations

from .api import KEEPS_FORMATS as KEEPS_FORMATS
from .api import Respelled as Respelled
from .api import is_respelling as is_respelling
from .api import respell as respell
from .spelling import TARGETS as TARGETS
