"""The pictures of a subject: a folder with captions, cuts, and buckets of one size."""

from __future__ import annotations

from .buckets import choose_buckets as choose_buckets
from .buckets import draw_pictures as draw_pictures
from .buckets import make_buckets as make_buckets
from .counts import Counts as Counts
from .counts import count as count
from .cut import CENTRE as CENTRE
from .cut import Cut as Cut
from .cut import draw_cut as draw_cut
from .folder import Found as Found
from .folder import Picture as Picture
from .folder import find_images as find_images
from .picture import Loaded as Loaded
from .picture import load_image as load_image
from .picture import open_image as open_image
from .picture import to_tensor as to_tensor
