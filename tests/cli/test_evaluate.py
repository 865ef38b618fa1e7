"""`svdiff evaluate`: pictures painted and read, measured, written, drawn."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import Outcome, svdiff
from support.scenes import CAR, CAT, pairs, portraits, save_all

from svdiff_delta import Delta, add, save
from svdiff_delta.runtime import attach
from svdiff_train.batches import new_delta  # noqa: F401
from svdiff_train.evaluate import Clip, image_alignment, text_alignment
from svdiff_train.pipelines import load_pipeline
from svdiff_train.sample import Sampling, generate
from svdiff_train.tiny import base_path, open_tiny, pictures_path
