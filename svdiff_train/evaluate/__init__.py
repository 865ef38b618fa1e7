"""Evaluation: do pictures show what prompts say, and what reference pictures show (paper, Fig. 9b)."""

from __future__ import annotations

from .alignment import ImageScorer as ImageScorer
from .alignment import image_alignment as image_alignment
from .alignment import text_alignment as text_alignment
from .alignment import without_tokens as without_tokens
from .candidates import Candidate as Candidate
from .candidates import paint_candidates as paint_candidates
from .candidates import read_candidates as read_candidates
from .clip import Clip as Clip
from .clip import find_clip as find_clip
from .detector import Detection as Detection
from .detector import Detector as Detector
from .dino import Dino as Dino
from .lpips import Lpips as Lpips
from .pictures import Prompted as Prompted
from .pictures import read_prompted as read_prompted
from .pictures import read_references as read_references
from .region import REGIONS as REGIONS
from .region import Region as Region
from .region import crop as crop
from .region import parse_region as parse_region
from .scores import MetricSuite as MetricSuite
from .scores import Scores as Scores
from .scores import score as score
from .statistics import Interval as Interval
from .statistics import bootstrap_interval as bootstrap_interval
from .statistics import mean_interval as mean_interval
from .statistics import share_interval as share_interval
from .statistics import wilson_interval as wilson_interval
from .table import render as render
