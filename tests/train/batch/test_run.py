"""Manifests run: side by side, past what fails, and on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
import torch
from support.adapters import save_peft
from support.checkpoints import bert, changed
from support.commands import svdiff
from support.files import contents, listing, written
from support.forked import forked

from svdiff_delta import convert, load, open_base
from svdiff_delta.conversion import convert_directly
from svdiff_delta.errors import InputError, MissingExtraError
from svdiff_train import ray_cluster
from svdiff_train.batch import Result, convert_one, run_manifest, run_manifest_on_ray
from svdiff_train.batch import run as run_module
from svdiff_train.batch.row import Row
from svdiff_train.batch.run import Task, convert_task

QUERY = "encoder.layer.0.attention.self.query.weight"
BIAS = "encoder.layer.0.attention.self.query.bias"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    bert(folder / "base")
    for number in range(3):
        changed(folder / "base", folder / f"tuned{number}", {QUERY: lambda weight, n=number: weight * (1.25 + n)})
    changed(folder / "base", folder / "biased", {QUERY: lambda w: w * 2, BIAS: lambda bias: bias + 1})
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """A folder with models and a manifest, of whose four rows the second one fails."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    inputs = ["tuned0", "biased", "tuned1", "tuned2"]
    rows = [{"input": name, "output": f"{name}.safetensors", "base": "base"} for name in inputs]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "all.report.jsonl").read_text().splitlines()]


def statuses(results: list[Result]) -> list[str]:
    return [result.status for result in results]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


EXPECTED = ["converted", "failed", "converted", "converted"]


def test_a_file_that_fails_does_not_stop_the_rest(folder: Path) -> None:
    found = run_manifest(folder / "all.jsonl")
    assert statuses(found) == EXPECTED
    assert f"model.{BIAS} (differs, and is of no kind" in (found[1].error or "")
    assert list(outputs(folder)) == ["tuned0.safetensors", "tuned1.safetensors", "tuned2.safetensors"]
    assert [line["status"] for line in lines(folder)] == EXPECTED
    assert lines(folder)[0]["row"] == {"input": "tuned0", "output": "tuned0.safetensors", "base": "base"}
    assert lines(folder)[0]["captured"] == pytest.approx(1)
    assert not [name for name in listing(folder) if name.startswith(".")]


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_bytes(folder: Path) -> None:
    run_manifest(folder / "all.jsonl", jobs=1)
    one = outputs(folder)
    assert statuses(run_manifest(folder / "all.jsonl", jobs=2, overwrite=True)) == EXPECTED
    assert outputs(folder) == one


def test_a_second_run_passes_over_what_is_done_and_tries_again_what_failed(folder: Path) -> None:
    first = run_manifest(folder / "all.jsonl")
    before, times = outputs(folder), {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    second = run_manifest(folder / "all.jsonl")
    assert statuses(second) == ["passed over", "failed", "passed over", "passed over"]
    assert second[0].captured == first[0].captured
    assert (outputs(folder), {path: path.stat().st_mtime_ns for path in times}) == (before, times)
    assert [line["status"] for line in lines(folder)] == EXPECTED


def change_input(folder: Path) -> None:
    (folder / "tuned0").unlink()
    changed(folder / "base", folder / "tuned0", {QUERY: lambda weight: weight * 3})


def touch_base(folder: Path) -> None:
    target = folder / "base" / "model.safetensors"
    os.utime(target, ns=(target.stat().st_atime_ns, target.stat().st_mtime_ns + 1))


def lose_output(folder: Path) -> None:
    (folder / "tuned0.safetensors").unlink()


@pytest.mark.parametrize("change", [change_input, touch_base, lose_output])
def test_what_changed_is_done_anew(folder: Path, change: object) -> None:
    run_manifest(folder / "all.jsonl")
    change(folder)  # type: ignore[operator]
    assert statuses(run_manifest(folder / "all.jsonl"))[0] == "converted"
    assert statuses(run_manifest(folder / "all.jsonl"))[0] == "passed over"


def test_a_row_with_other_options_is_another_row(folder: Path) -> None:
    run_manifest(folder / "all.jsonl")
    rows = (folder / "all.jsonl").read_text().splitlines()
    (folder / "all.jsonl").write_text(json.dumps({**json.loads(rows[0]), "title": "Dog"}) + "\n")
    with pytest.raises(InputError, match=r"row 1: .*tuned0\.safetensors: exists already"):
        run_manifest(folder / "all.jsonl")
    assert statuses(run_manifest(folder / "all.jsonl", overwrite=True)) == ["converted"]
    assert load(folder / "tuned0.safetensors").metadata.title == "Dog"
    assert len(lines(folder)) == 5


def test_an_output_that_somebody_changed_is_not_overwritten(folder: Path) -> None:
    run_manifest(folder / "all.jsonl")
    (folder / "tuned0.safetensors").write_text("mine")
    found = run_manifest(folder / "all.jsonl")
    assert (found[0].status, "exists already" in (found[0].error or "")) == ("failed", True)
    assert (folder / "tuned0.safetensors").read_text() == "mine"
    assert statuses(run_manifest(folder / "all.jsonl", overwrite=True)) == EXPECTED


def test_a_row_whose_process_dies_fails_and_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_tasks(function: object, tasks: list, jobs: int, begun: object):
        yield from ((index, None if index == 2 else convert_one(task[0])) for index, task in enumerate(tasks))

    monkeypatch.setattr(run_module, "run_tasks", run_tasks)
    found = run_manifest(folder / "all.jsonl", jobs=2)
    assert statuses(found) == ["converted", "failed", "failed", "converted"]
    assert found[2].error == "its process died, as it does when memory ends: use fewer `jobs`"


# --- Kills ---

RUN = """
import os, signal, sys
from pathlib import Path
from svdiff_train.batch import run_manifest
from svdiff_train.batch.report import Report

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it

def stop(*_):
    os.kill(os.getpid(), signal.{signal})

if {early}:  # of two processes the one whose row fails may end first: that is not yet the moment
    add = Report.add
    Report.add = lambda report, row: (stop if row.status == "converted" else add)(report, row)
run_manifest(Path(sys.argv[1]), jobs=int(sys.argv[2]), watch=None if {early} else stop)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "early"), [("2", True), ("1", False)], ids=["before its line is written", "after its line is written"]
)
def test_a_killed_run_is_gone_on_with(folder: Path, jobs: str, early: bool) -> None:
    code = RUN.format(signal="SIGKILL", early=early)
    assert forked(code, folder / "all.jsonl", jobs).code == -9
    assert outputs(folder)
    found = run_manifest(folder / "all.jsonl")
    assert sorted(set(statuses(found))) == ["converted", "failed"] if early else ["converted", "failed", "passed over"]
    assert [line["status"] for line in lines(folder)] == EXPECTED
    assert statuses(run_manifest(folder / "all.jsonl")) == ["passed over", "failed", "passed over", "passed over"]


def test_a_row_may_ask_for_a_lora_without_a_delta_in_between(folder: Path) -> None:
    row = {"input": "tuned0", "from": "full", "base": "base", "to": "peft", "direct": True, "rank": 2}
    result = convert_one(Row.parse({**row, "output": "lora"}, folder))
    convert_directly(folder / "tuned0", to="peft", base=open_base(folder / "base"), rank=2, output=folder / "same")
    assert (result.status, result.error) == ("converted", None)
    assert contents(folder / "lora") == contents(folder / "same")


def test_a_direct_row_cannot_be_calibrated(folder: Path) -> None:
    (folder / "prompts.txt").write_text("a photo")
    row = {"input": "tuned0", "output": "x", "base": "base", "to": "peft", "direct": True, "rank": 2}
    (folder / "one.jsonl").write_text(json.dumps({**row, "calibrate": "prompts.txt"}) + "\n")
    with pytest.raises(InputError, match="chooses shifts, and with `direct` there are none"):
        run_manifest(folder / "one.jsonl")


@pytest.mark.slow
def test_ctrl_c_leaves_a_whole_report_and_no_half_file(folder: Path) -> None:
    done = forked(RUN.format(signal="SIGINT", early=False), folder / "all.jsonl", "2")
    assert "KeyboardInterrupt" in done.err
    assert not [name for name in listing(folder) if name.startswith(".")]
    assert {line["status"] for line in lines(folder)} <= {"converted", "failed", "started"}
    assert lines(folder)[0]["status"] in ("converted", "started")
    assert [line["status"] for line in lines(folder) if line["status"] != "started"]
    assert [line["status"] for line in after(folder)] == EXPECTED


def after(folder: Path) -> list[dict]:
    run_manifest(folder / "all.jsonl")
    return lines(folder)


def test_a_torn_last_line_is_dropped(folder: Path) -> None:
    run_manifest(folder / "all.jsonl")
    report, last = folder / "all.report.jsonl", lines(folder)[-1]
    *whole, torn = report.read_bytes().splitlines(keepends=True)
    begun = json.dumps({"key": last["key"], "row": last["row"], "status": "started", "begun": True}).encode() + b"\n"
    report.write_bytes(b"".join([*whole, begun, torn[:-9]]))
    assert statuses(run_manifest(folder / "all.jsonl")) == ["passed over", "failed", "passed over", "converted"]
    report.write_text('{"key": "ab')
    with pytest.raises(InputError, match="exists already"):
        run_manifest(folder / "all.jsonl")


# --- The table ---


def test_the_report_is_a_table_too(folder: Path) -> None:
    run_manifest(folder / "all.jsonl")
    head, *rows, counts, error = (folder / "all.report.txt").read_text().splitlines()
    assert head.split() == ["output", "status", "parameters", "captured", "left", "out", "bytes"]
    assert [row.split()[:2] for row in rows] == [
        [f"{name}.safetensors", status]
        for name, status in zip(["tuned0", "biased", "tuned1", "tuned2"], EXPECTED, strict=True)
    ]
    size = (folder / "tuned0.safetensors").stat().st_size
    assert rows[0].split()[2:] == ["1", "100.00%", "0", f"{size:,}"]
    assert counts == "3 converted, 0 passed over, 1 failed"
    assert error.startswith("error: row 2: biased: ")
    before = (folder / "all.report.txt").read_text()
    run_manifest(folder / "all.jsonl")
    assert (folder / "all.report.txt").read_text() == before


def test_something_else_in_the_place_of_the_table_is_left_alone(folder: Path) -> None:
    (folder / "all.report.txt").write_text("mine")
    for dry_run in (True, False):
        with pytest.raises(
            InputError, match=r"all\.report\.txt: is not the table of a report: name another .* `report`"
        ):
            run_manifest(folder / "all.jsonl", dry_run=dry_run)
    assert listing(folder) == sorted([*listing(folder), "all.report.txt"][:-1])
    assert (folder / "all.report.txt").read_text() == "mine"
    run_manifest(folder / "all.jsonl", folder / "other.jsonl")
    assert (folder / "other.txt").is_file()


def test_what_was_assumed_is_in_report_and_table_and_is_still_there_when_a_row_is_passed_over(folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {
        f"{QUERY.removesuffix('weight')}lora_{side}.weight": torch.randn(shape, generator=random)
        for side, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    save_peft(folder / "lora", tensors, r=2)
    row = {"input": "lora", "output": "x.safetensors", "base": "base", "min_energy": 0}
    (folder / "all.jsonl").write_text(json.dumps(row) + "\n")
    told = "adapter_config.json gives no lora_alpha: taken to be 8, as PEFT does"
    for status in ("converted", "passed over"):
        (found,) = run_manifest(folder / "all.jsonl")
        assert (found.status, list(found.remarks)) == (status, [told])
        assert lines(folder)[0]["remarks"] == [told]
        assert (folder / "all.report.txt").read_text().splitlines()[-1] == f"note: row 1: lora: {told}"
    outcome = svdiff("convert", "--manifest", folder / "all.jsonl")
    assert outcome.err == f"note: row 1: lora: {told}\n"


def test_a_row_from_one_dialect_to_another_says_what_was_captured_and_what_retained(folder: Path) -> None:
    row = {"input": "tuned0", "output": "lora", "base": "base", "to": "peft", "rank": 3}
    (folder / "all.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = run_manifest(folder / "all.jsonl")
    direct = convert(
        convert(folder / "tuned0", base=open_base(folder / "base")).delta,
        to="peft",
        base=open_base(folder / "base"),
        rank=3,
    )
    assert found.captured == pytest.approx(1)
    assert found.retained == pytest.approx(direct.captured)
    assert found.bytes == sum(map(len, written(folder / "lora").values()))


@pytest.mark.parametrize("text", ["hello\n", '{"status": "converted"}\n', "[1]\n", "hello"])
def test_a_file_that_is_no_report_is_left_alone(folder: Path, text: str) -> None:
    (folder / "all.report.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"all\.report\.jsonl: .* report: name another file with `report`"):
        run_manifest(folder / "all.jsonl")
    assert (folder / "all.report.jsonl").read_text() == text


def test_two_runs_do_not_write_one_report(folder: Path) -> None:
    def again(*_: object) -> None:
        with pytest.raises(InputError, match="another run writes this report"):
            run_manifest(folder / "all.jsonl")

    assert len(run_manifest(folder / "all.jsonl", watch=again)) == 4


# --- The unit of work ---


def test_one_row_is_a_plain_function_of_a_mapping(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = convert_one({"input": "tuned1", "output": "x.safetensors", "base": "base", "dtype": "f16"})
    assert (found.status, found.parameters) == ("converted", 1)
    assert load("x.safetensors").dtypes == {f"model.{QUERY}": "F16"}
    again = convert_one({"input": "tuned1", "output": "x.safetensors", "base": "base"})
    assert (again.status, "exists already" in (again.error or "")) == ("failed", True)
    with pytest.raises(InputError, match="has no input"):
        convert_one({})


def test_what_nobody_thought_of_is_a_failure_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("svdiff_train.batch.work.convert", lambda *_, **__: 1 / 0)
    found = convert_one({"input": "tuned1", "output": "x.safetensors", "base": "base"})
    assert (found.status, found.error) == ("failed", "ZeroDivisionError: division by zero")


# --- The command ---


def test_the_command_prints_a_table_and_fails_with_the_row_s_error(folder: Path) -> None:
    outcome = svdiff("convert", "--manifest", folder / "all.jsonl", "--jobs", "1")
    assert outcome.code == 1
    head, *rows, counts = outcome.out.splitlines()
    assert head.split() == ["output", "status", "parameters", "captured", "left", "out", "bytes"]
    assert [row.split()[:2] for row in rows][1:3] == [
        ["biased.safetensors", "failed"],
        ["tuned1.safetensors", "converted"],
    ]
    assert counts == "3 converted, 0 passed over, 1 failed"
    assert outcome.err.startswith("error: row 2: biased: ")
    assert len(outcome.err.splitlines()) == 1


def test_the_command_succeeds_where_all_rows_do(folder: Path) -> None:
    row = {"input": "biased", "output": "b.safetensors", "base": "base", "allow_unmatched": True}
    (folder / "all.jsonl").write_text(json.dumps(row) + "\n")
    outcome = svdiff("convert", "--manifest", folder / "all.jsonl", "--json", "--report", folder / "report.jsonl")
    facts = json.loads(outcome.out)
    assert (outcome.code, facts["converted"], facts["failed"]) == (0, 1, 0)
    assert list(facts["rows"][0]["left_out"]) == [f"model.{BIAS}"]
    assert (folder / "report.jsonl").is_file()


def test_a_dry_run_checks_and_writes_nothing(folder: Path) -> None:
    before = listing(folder)
    outcome = svdiff("convert", f"--manifest={folder / 'all.jsonl'}", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    assert listing(folder) == before
    with (folder / "all.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert svdiff("convert", "--manifest", folder / "all.jsonl", "--dry-run").err.startswith("error: ")


def test_the_forms_do_not_mix(folder: Path) -> None:
    assert svdiff("convert", "x", "--manifest", folder / "all.jsonl").code == 2
    assert svdiff("convert", "--manifest", folder / "all.jsonl", "--base", "tiny").code == 2
    assert svdiff("convert", "x", "--jobs", "2", "--base", "tiny", "-o", "y").code == 2
    assert contents(folder / "base").keys() == {"config.json", "model.safetensors"}


def test_rows_can_be_done_elsewhere_and_what_is_lost_there_has_failed(folder: Path) -> None:
    begun = []

    def share(tasks: Sequence[Task]) -> Generator[tuple[int, Result | None]]:
        begun.extend(json.loads(line)["status"] for line in (folder / "all.report.jsonl").read_text().splitlines())
        for index in (3, 2, 1, 0):
            yield index, None if index == 2 else convert_task(*tasks[index])

    found = run_manifest(folder / "all.jsonl", share=share)
    assert begun == ["started"] * 4
    assert statuses(found) == ["converted", "failed", "failed", "converted"]
    assert "its process died" in (found[2].error or "")
    assert [line["status"] for line in lines(folder)] == statuses(found)
    assert statuses(run_manifest(folder / "all.jsonl")) == ["passed over", "failed", "converted", "passed over"]


def test_what_only_the_hub_has_is_looked_at_where_it_is_converted(folder: Path) -> None:
    (folder / "all.jsonl").write_text(json.dumps({"input": "alice/dog", "output": "dog.safetensors", "base": "base"}))
    with pytest.raises(InputError, match=r"nothing was started: row 1: .*alice/dog"):
        run_manifest(folder / "all.jsonl", dry_run=True)
    assert run_manifest(folder / "all.jsonl", dry_run=True, share=lambda tasks: (_ for _ in ())) == []


def test_without_ray_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="ray"):
        run_manifest_on_ray(folder / "all.jsonl")
    assert not (folder / "all.report.jsonl").exists()
