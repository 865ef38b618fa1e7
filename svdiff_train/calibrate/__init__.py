"""Calibration: a base runs on prompts, on pictures or on texts, and its layers' inputs are measured (section 7.12)."""

from __future__ import annotations

from .choose import calibration_from as calibration_from
from .choose import digest_of as digest_of
from .pictures import calibration_on_pictures as calibration_on_pictures
from .pictures import find_pictures as find_pictures
from .prompts import calibration_on as calibration_on
from .texts import calibration_on_texts as calibration_on_texts
