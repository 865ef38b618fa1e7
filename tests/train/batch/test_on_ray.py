"""Manifests on Ray Data: the same as elsewhere, past processes that die, and on after a kill."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.adapters import save_tensors
from support.checkpoints import bert
from support.commands import svdiff
from support.ray_processes import kill, ours

from svdiff_delta import load
from svdiff_delta.errors import InputError
from svdiff_train.batch import Result, on_ray, run_manifest, run_manifest_on_ray
from svdiff_train.ray_cluster import joined

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray warns of what it calls itself
]

MODULE = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
MANY = 2000
MEMORY = 80 << 20
WORKER = "ray::MapBatches(convert_block)"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with joined(2, memory=MEMORY):
        yield


def manifest(folder: Path, count: int, *, to: str = "lycoris") -> Path:
    """Write so many small LoRAs, and a manifest of their conversion."""
    folder.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        tensors = {
            f"{MODULE}.lora_A.weight": torch.randn(2, 8, generator=draw),
            f"{MODULE}.lora_B.weight": torch.randn(6, 2, generator=draw),
        }
        save_tensors(folder / f"in{number}.safetensors", tensors)
        rows.append({"input": f"in{number}.safetensors", "output": f"out{number}.safetensors", "to": to})
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "all.jsonl"


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("out*.safetensors")}


def killing(at: set[int]) -> Callable[[Result, int, int], None]:
    """Kill a worker when so many rows are done."""

    def watch(_: Result, done: int, __: int) -> None:
        if done >= min(at, default=MANY + 1) and (workers := ours(WORKER)):
            at.remove(min(at))
            kill(workers[0])

    return watch


def test_ray_writes_the_same_bytes_and_the_same_report(tmp_path: Path) -> None:
    alone, shared = manifest(tmp_path / "alone", 40), manifest(tmp_path / "shared", 40)
    one, other = run_manifest(alone), run_manifest_on_ray(shared)
    assert [result.status for result in other] == ["converted"] * 40
    assert outputs(tmp_path / "shared") == outputs(tmp_path / "alone")
    assert [result.key for result in other] == [result.key for result in one]
    assert [result.status for result in run_manifest(shared)] == ["passed over"] * 40


def test_two_thousand_files_are_all_converted_though_workers_are_killed(tmp_path: Path) -> None:
    path, at = manifest(tmp_path, MANY), {300, 900}
    found = run_manifest_on_ray(path, watch=killing(at))
    assert not at  # both were killed
    assert [result.status for result in found] == ["converted"] * MANY
    assert len(outputs(tmp_path)) == MANY
    lines = [json.loads(line) for line in (tmp_path / "all.report.jsonl").read_text().splitlines()]
    assert [line["row"]["input"] for line in lines] == [f"in{number}.safetensors" for number in range(MANY)]
    assert {line["status"] for line in lines} == {"converted"}
    assert "2000 converted, 0 passed over, 0 failed" in (tmp_path / "all.report.txt").read_text()
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in outputs(tmp_path)}
    assert [result.status for result in run_manifest_on_ray(path)] == ["passed over"] * MANY
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times


def test_a_row_that_ends_every_process_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = on_ray.convert_block

    def poisoned(block: Any) -> Mapping[str, list[bytes]]:
        for raw in block.column("task").to_pylist():
            if pickle.loads(raw)[1][0].input == "in7.safetensors":
                os._exit(1)
        return convert(block)

    monkeypatch.setattr(on_ray, "convert_block", poisoned)
    found = run_manifest_on_ray(manifest(tmp_path, 40), attempts=2)
    failed = [number for number, result in enumerate(found) if result.status == "failed"]
    assert failed == [7]
    assert "its process died" in (found[7].error or "")
    monkeypatch.undo()
    again = [result.status for result in run_manifest_on_ray(tmp_path / "all.jsonl")]
    assert again == ["passed over"] * 7 + ["converted"] + ["passed over"] * 32


RUN = """
import sys
from pathlib import Path
from svdiff_train.batch import run_manifest_on_ray
run_manifest_on_ray(Path(sys.argv[1]), jobs=2, watch=lambda result, done, total: print(done, flush=True))
"""


def test_a_run_that_was_killed_goes_on_from_its_report(tmp_path: Path) -> None:
    path = manifest(tmp_path, 400)
    with subprocess.Popen([sys.executable, "-c", RUN, path], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while int(running.stdout.readline()) < 50:
            pass
        running.send_signal(signal.SIGKILL)
    time.sleep(5)  # its workers end with it
    found = [result.status for result in run_manifest_on_ray(path)]
    assert found.count("passed over") >= 50
    assert {*found} <= {"passed over", "converted"}
    assert len(outputs(tmp_path)) == 400


def test_what_is_wrong_is_said_before_ray_is_asked(tmp_path: Path) -> None:
    path = manifest(tmp_path, 2)
    path.write_text(path.read_text().replace("in1", "none"))
    with pytest.raises(InputError, match=r"nothing was started: row 2: .*none\.safetensors: there is no"):
        run_manifest_on_ray(path)
    for given in ({"jobs": 0}, {"attempts": 0}):
        with pytest.raises(InputError, match="at least 1"):
            run_manifest_on_ray(path, **given)


def test_a_row_that_is_wrong_fails_and_the_rest_goes_on_through_deltas_too(tmp_path: Path) -> None:
    bert(tmp_path / "base")
    query = "encoder.layer.0.attention.self.query"
    pair = {
        f"{query}.lora_A.weight": torch.ones(2, 16) / 8,
        f"{query}.lora_B.weight": torch.ones(16, 2) / 8,
    }
    save_tensors(tmp_path / "good.safetensors", pair)
    save_tensors(tmp_path / "bad.safetensors", {key.replace("query", "nothing"): value for key, value in pair.items()})
    rows = [
        {"input": f"{name}.safetensors", "output": f"{name}.delta.safetensors", "base": "base", "min_energy": 0.0}
        for name in ("good", "bad")
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = [result.status for result in run_manifest(tmp_path / "all.jsonl")]
    found = run_manifest_on_ray(tmp_path / "all.jsonl", overwrite=True)
    assert [result.status for result in found] == alone == ["converted", "failed"]
    assert len(load(tmp_path / "good.delta.safetensors")) == 1


def test_the_command_converts_on_ray(tmp_path: Path) -> None:
    path = manifest(tmp_path, 3)
    found = svdiff("convert", "--manifest", path, "--ray", "--jobs", 1, "--quiet")
    assert (found.code, found.err) == (0, "")
    assert len(outputs(tmp_path)) == 3
