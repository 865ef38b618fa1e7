"""What a bake does to the disk: plans, links, outputs that exist, full disks, and being killed."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from support.commands import Outcome, python
from support.files import parts, tree, written
from support.models import MINILM, base_delta

from svdiff_delta import Delta, bake, open_base, save, scale, select
from svdiff_delta.baking.plan import Unchanged, plan_bake
from svdiff_delta.base_model.base import Base
from svdiff_delta.errors import OutputError
from svdiff_delta.svd.cache import BasisCache
from svdiff_train.tiny import base_path


def test_an_existing_output_is_kept_unless_told_otherwise(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="exists already"):
        bake(minilm, [delta], tmp_path / "out")
    with pytest.raises(OutputError, match="is no folder that this program wrote"):
        bake(minilm, [delta], tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == {"mine": b"keep"}
    bake(minilm, [delta], tmp_path / "new")
    bake(minilm, [delta], tmp_path / "new", overwrite=True)
    assert "config.json" in tree(tmp_path / "new")


@pytest.mark.parametrize("how", ["hardlink", "symlink"])
def test_files_that_are_not_changed_can_be_linked(tmp_path: Path, how: Unchanged) -> None:
    linkable = tmp_path / "base"
    shutil.copytree(base_path(), linkable)
    base = open_base(linkable)
    bake(base, [base_delta(base, "mid")], tmp_path / "out", unchanged=how)
    unet, vae = (tmp_path / "out" / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
    original = linkable / "vae" / "diffusion_pytorch_model.safetensors"
    assert vae.samefile(original)
    assert vae.is_symlink() == (how == "symlink")
    assert not unet.samefile(linkable / "unet" / "diffusion_pytorch_model.safetensors")
    assert written(tmp_path / "out").keys() == parts(linkable).keys()


def test_a_plan_says_what_a_bake_needs_and_writes_nothing(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_bake(minilm, [delta], out, dtype="F16")
    assert not list(tmp_path.iterdir())
    bake(minilm, [delta], out, dtype="F16")
    sizes = {str(item.target): item.bytes for item in plan.items}
    found = {name: len(raw) for name, raw in written(out).items()}
    assert sizes.keys() == found.keys()
    assert sizes["model.safetensors"] == found["model.safetensors"]
    assert plan.bytes == pytest.approx(sum(found.values()), abs=100)  # the configuration's dtype has another length
    assert plan.missing == []


def test_a_plan_names_the_bases_that_are_missing(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    plan = plan_bake(minilm, [delta], tmp_path / "out", cache=BasisCache(tmp_path / "empty"))
    kinds = {name: parameter.kind for name, parameter in delta.metadata.parameters.items()}
    assert plan.missing == [name for name, kind in kinds.items() if kind == "spectral"]


def test_a_disk_without_space_is_noticed_before_anything_is_written(
    minilm: Base, delta: Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match=r"out: needs \d[\d,]+ bytes, its disk has 1,000 left: free some space"):
        bake(minilm, [delta], tmp_path / "out")
    assert not list(tmp_path.iterdir())


FULL = """
import resource, signal, sys, warnings
from pathlib import Path
from svdiff_delta import bake, load, open_base
from svdiff_delta.svd.cache import BasisCache
base, delta, out, cache = open_base(sys.argv[1]), load(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), resource.RLIM_INFINITY))
warnings.simplefilter("default")
print(bake(base, [delta], out, cache=BasisCache(cache)).path)
"""


def bake_on_a_full_disk(delta: Delta, folder: Path, largest: int) -> Outcome:
    """Bake in a process that may write no file of more than `largest` bytes: to the code that is a full disk."""
    save(delta, folder / "delta.safetensors")
    places = [MINILM, folder / "delta.safetensors", folder / "out", folder / "cache", str(largest)]
    return python(FULL, *places)


def test_a_disk_that_is_full_in_the_output_leaves_nothing_of_it(delta: Delta, tmp_path: Path) -> None:
    done = bake_on_a_full_disk(select(delta, "model.encoder.layer.0.attention.self.query.weight"), tmp_path, 5_000_000)
    assert "OutputError" in done.err
    assert f"{tmp_path / 'out'}: could not be written (File too large)" in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"delta.safetensors", "cache"}


def test_a_disk_that_is_full_in_the_cache_is_reported_and_the_bake_goes_on(delta: Delta, tmp_path: Path) -> None:
    part = select(delta, "model.encoder.layer.0.attention.self.query.weight")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "v1").write_text("no folder can be made here")
    done = bake_on_a_full_disk(part, tmp_path, 1_000_000_000)
    assert done.out == f"{tmp_path / 'out'}\n"
    assert "DeltaWarning: going on without the basis cache" in done.err
    assert (tmp_path / "out" / "model.safetensors").exists()


KILLED = """
import os, signal, sys
from svdiff_delta import bake, load, open_base
def kill(done, total):
    if done > float(sys.argv[4]) * total:
        os.kill(os.getpid(), signal.SIGKILL)
bake(open_base(sys.argv[1]), [load(sys.argv[2])], sys.argv[3], overwrite=True, progress=kill)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["0.01", "0.5", "0.99"])
def test_a_bake_that_was_killed_leaves_the_old_output_and_can_be_done_again(
    minilm: Base, delta: Delta, tmp_path: Path, moment: str
) -> None:
    save(delta, tmp_path / "delta.safetensors")
    bake(minilm, [scale(delta, 0.0)], tmp_path / "out")
    before = tree(tmp_path / "out")
    done = python(KILLED, MINILM, tmp_path / "delta.safetensors", tmp_path / "out", moment)
    assert done.code == -signal.SIGKILL
    assert tree(tmp_path / "out") == before
    bake(minilm, [delta], tmp_path / "out", overwrite=True)
    bake(minilm, [delta], tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_the_same_bake_gives_the_same_bytes(minilm: Base, delta: Delta, tmp_path: Path) -> None:
    bake(minilm, [delta], tmp_path / "a", dtype="F16")
    bake(minilm, [delta], tmp_path / "b", dtype="F16")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
