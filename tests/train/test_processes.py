"""Two processes of torchrun train what one does with twice the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from svdiff_delta import load

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
# Adam divides by the gradient's size, and so makes of the order of a sum what it likes; plain descent does not.
torch.optim.AdamW = lambda groups, weight_decay: torch.optim.SGD(groups)
from accelerate import PartialState
from svdiff_delta import save
from svdiff_train.config import TrainConfig
from svdiff_train.loop import Keeping, train
from svdiff_train.tiny import open_tiny, pictures_path
folder, batch = Path(sys.argv[1]), int(sys.argv[2])
state = PartialState(cpu=True)
(folder / f"process-{state.process_index}-of-{state.num_processes}").touch()
config = TrainConfig(prompt="a photo of a sks cat", class_prompt="a photo of a cat", class_images=3, steps=3,
                     learning_rate=1.0, batch_size=batch, selectors=("unet-ca",))
outcome = train(open_tiny(), pictures_path("black_cat"), config, keeping=Keeping(folder=folder / "run"),
                class_folder=folder / "class")
if outcome.main_process:
    save(outcome.delta, folder / "delta.safetensors")
state.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command, batch in (("two", launch, 1), ("one", [sys.executable], 2)):
        (tmp_path / name).mkdir()
        subprocess.run([*command, str(script), str(tmp_path / name), str(batch)], check=True, env=environment)
    assert {path.name for path in (tmp_path / "two").glob("process-*")} == {"process-0-of-2", "process-1-of-2"}
    two, one = (load(tmp_path / name / "delta.safetensors") for name in ("two", "one"))
    assert max(np.abs(one[name]).max() for name in one) > 1e-3
    for name in one:
        # The sums are the same but for their order.
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-8)
