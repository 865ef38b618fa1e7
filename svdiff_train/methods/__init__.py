"""Ways to fine-tune, one small file each, behind one registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .full import Full
from .kv import CustomDiffusion
from .lora import Lora
from .method import Job as Job
from .method import Method as Method
from .method import Result as Result
from .method import Tuned as Tuned
from .svdiff import Svdiff
from .svdiff import TrainedDelta as TrainedDelta

METHODS: Final[Mapping[str, Method]] = {"svdiff": Svdiff(), "full": Full(), "lora": Lora(), "kv": CustomDiffusion()}
"""Method by name."""
