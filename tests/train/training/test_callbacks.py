"""What a run says of itself: the memory it used is its own."""

from __future__ import annotations

import numpy as np
from support.commands import python

from svdiff_train.training.callbacks import peak_memory

SCRIPT = "from svdiff_train.training.callbacks import peak_memory; print(peak_memory())"


def test_peak_memory_counts_what_was_given_back_but_not_what_the_starting_process_used() -> None:
    held = np.ones(50_000_000)  # 400 MB
    size, most = held.nbytes, peak_memory()
    assert most > size
    assert 0 < int(python(SCRIPT).out) < most - size // 2
    del held
    assert peak_memory() > most - size // 2  # the kernel counts pages in batches, so not to the byte
