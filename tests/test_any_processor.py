"""Tests that compare computed numbers hold on any processor: with other kernels, and on other numbers of threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from support.numeric import TESTS, files_of_tests, imports_torch, numeric_tests, reaches_torch

SETTINGS: Final[dict[str, dict[str, str]]] = {
    "the narrowest units": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OMP_NUM_THREADS": "1",
        **({"OPENBLAS_CORETYPE": "Prescott"} if platform.machine().lower() in ("x86_64", "amd64") else {}),
    },
    "torch's narrowest and oneDNN's AVX2": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "2",
    },
    "torch's own and oneDNN's AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "1"},
    "its own on all cores": {},
}
"""Beside a processor's own on one thread, on which `make test` runs; none asks for units that it may not have.

oneDNN is nowhere left to itself beside torch's narrowest: where a processor multiplies tiles (AMX), torch 2.13 then
chooses attention in bfloat16 by what oneDNN can do, and refuses it by what torch itself may use.
"""
OURS: Final = {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS"}

COMPARES_NOTHING: Final = {
    "cli/test_devices.py",
    "cli/test_progress.py",
    "benchmarks/test_gpu_scripts.py",
    "cli/test_references.py",
    "delta/conversion/test_model_family.py",
    "delta/conversion/test_shapes.py",
    "delta/runtime/test_memory.py",
    "delta/svd/test_build.py",
    "delta/svd/test_side_by_side.py",
    "delta/util/test_interrupted.py",
    "delta/base_model/test_matching.py",
    "delta/base_model/test_original_files.py",
    "delta/selectors/test_structure.py",
    "delta/svd/test_verify.py",
    "delta/base_model/test_sd15_layout.py",
    "test_readme.py",
    "train/batch/test_on_ray.py",
    "train/training/test_oom_advice.py",
    "delta/conversion/test_without_classes.py",
    "delta/svd/remembered/test_remembered_blobs.py",
    "train/families/test_recorded_runs.py",
    "train/graphs/test_cuda_capture.py",
    "train/memory/test_quantized_runs.py",
    "train/memory/test_sharding.py",
}
"""Files that import torch and whose tests are of messages, names, devices and equal files, or are all slow."""
COMPARES_WITH_ITSELF: Final = {"train/sampling/test_graphed_denoiser.py", "train/training/test_graphed_step.py"}
"""Files whose tests compute one thing in two ways, by the same kernels, bit for bit; a quarter of the whole time."""
LEFT_OUT: Final = {
    "cli/test_image_inputs.py": {
        "test_a_picture_says_how_it_was_painted_and_no_path",
        "test_edit_shows_source_reconstruction_and_every_edit",
        "test_every_delta_has_its_own_row_beside_the_base",
        "test_morph_writes_a_strip_that_says_what_is_on_it",
        "test_tuned_models_are_summed_as_weights_and_told_from_deltas",
    },
    "cli/test_train.py": {"test_two_concepts_are_trained_and_recorded"},
    "delta/runtime/test_interrupts.py": {
        "test_what_is_interrupted_leaves_a_model_attached_and_right_or_as_it_was",
        "test_what_is_interrupted_twice_can_be_called_again",
    },
    "delta/conversion/test_clients.py": {"test_peft_takes_mixed_ranks_at_a_scale_of_one"},
    "delta/conversion/test_respell.py": {
        "test_an_adapter_comes_back_bit_for_bit",
        "test_keys_tell_the_family_so_that_no_base_is_needed",
        "test_without_a_base_nothing_is_guessed",
    },
    "serve/board/test_previews.py": {"test_two_people_do_not_end_each_others_previews"},
    "train/calibrate/test_calibration.py": {"test_the_command_says_what_both_forms_capture"},
    "train/data/test_cut_mix.py": {"test_with_buckets_a_step_has_one_size_and_shows_any_concept"},
    "train/data/test_image_sets.py": {
        "test_a_bake_in_float16_differs_from_one_in_float32_by_the_rounding_of_its_weights_alone",
    },
    "train/evaluate/test_statistics.py": {"test_nineteen_of_twenty_intervals_hold_the_true_mean"},
    "train/memory/test_plan.py": {"test_stacked_experts_are_in_the_plan"},
    "train/methods/test_methods.py": {
        "test_custom_diffusion_changes_keys_values_and_one_row",
        "test_full_fine_tuning_makes_a_pipeline_of_changed_weights",
        "test_lora_is_loaded_by_diffusers_and_paints_differently",
        "test_settings_change_what_is_learned",
        "test_shifts_below_minus_sigma_come_back_with_revive_only",
    },
    "train/sampling/test_edit.py": {
        "test_from_noise_it_is_plain_sampling",
        "test_inversion_keeps_to_the_picture",
        "test_without_noise_the_seed_does_not_matter_and_with_noise_it_does",
    },
    "train/sampling/test_morph.py": {"test_the_ends_are_the_pictures_of_each_alone"},
    "train/settings/test_base_advice.py": {"test_a_base_that_names_no_limit_says_nothing"},
    "train/training/test_concept_runs.py": {
        "test_one_concept_is_the_run_that_a_prompt_and_a_folder_describe",
        "test_the_run_is_recorded_without_paths",
    },
    "train/training/test_loop.py": {"test_the_run_is_recorded_without_paths_or_times"},
    "train/training/test_unmix.py": {"test_its_gradient_lowers_attention_on_the_wrong_half"},
    "train/training/test_reports.py": {
        "test_a_state_is_by_weights_and_one_of_an_earlier_release_goes_on",
        "test_what_was_good_at_the_last_report_is_kept_where_an_update_overflows",
        "test_what_was_good_before_a_bad_step_is_kept",
    },
}
"""Tests that take long and compute nothing, or what others of their files compare, or one thing twice by the same
kernels, or what rounding is far from."""

HALVES: Final = dict(zip(SETTINGS, (0, 1, 1, 0), strict=True))
"""Which half of the cases of a test with several is computed with a setting: every case is computed with torch's
narrowest units, on one thread or two, and with its own, and each test with all settings. With ALL_CASES=1 in the
environment every case is computed with every setting: before a release, or after a change of the numerics."""

PROBE: Final = """
import torch
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
x, kernel = torch.linspace(-3, 7, 2**14).view(4, 16, 16, 16), torch.linspace(-2, 3, 2304).view(16, 16, 3, 3)
print(torch.conv2d(x, kernel).double().square().sum().item(), (x.view(64, -1) @ x.view(64, -1).T).double().sum().item())
"""


def chosen() -> list[str]:
    """Return every test that compares what torch computes, but for those left out, as pytest names them."""
    return [
        f"{path}::{name}"
        for path in files_of_tests()
        if reaches_torch(path) and "pytest.mark.quantized" not in path.read_text("utf-8")  # whose libraries lie apart
        for name in numeric_tests(path)
        if (file := path.relative_to(TESTS).as_posix()) not in COMPARES_WITH_ITSELF
        and name not in LEFT_OUT.get(file, ())
    ]


def run(setting: str, *arguments: str, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run Python with a setting and nothing that was set outside; threads that wait leave their core to others.

    NumPy's library has one thread: by it tests compute what is true, and threads of it spin while they wait.
    """
    plain = {key: value for key, value in os.environ.items() if key not in OURS}
    plain |= {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1", "HALF": str(HALVES[setting])}
    plain["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS), plain.get("PYTHONPATH"))))  # for support.half
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env=plain | SETTINGS[setting],
        capture_output=True,
        encoding="utf-8",
        timeout=seconds,
        check=False,
    )


def test_no_file_with_torch_is_forgotten() -> None:
    with_torch = [path for path in files_of_tests() if imports_torch(path)]
    silent = {path.relative_to(TESTS).as_posix() for path in with_torch if not numeric_tests(path)}
    assert silent == COMPARES_NOTHING  # or teach `support.numeric.COMPARING` what the new tests compare with


def test_most_files_with_torch_are_chosen_and_what_is_left_out_is_there() -> None:
    names = [name.removeprefix(f"{TESTS}/") for name in chosen()]
    assert len(names) == len(set(names)) > 350
    assert "train/methods/test_methods.py::test_two_batches_of_one_equal_one_batch_of_two" in names
    assert (
        "train/data/test_image_sets.py::test_a_picture_does_not_depend_on_its_batch" in names
    )  # in a function beside it
    assert "train/test_ways.py::test_a_compiled_run_learns_what_one_that_is_not_compiled_does" not in names  # slow
    assert all(numeric_tests(TESTS / file) for file in COMPARES_WITH_ITSELF)
    for file, left_out in LEFT_OUT.items():
        assert left_out <= {*numeric_tests(TESTS / file)}


CASES: Final = """
import pytest
@pytest.mark.parametrize("b", "xy")
@pytest.mark.parametrize("a", "vw")
def test_pair(a, b): pass
def test_alone(): pass
"""


def test_two_settings_compute_each_half_and_halves_have_every_value(tmp_path: Path) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    halves = []
    for setting in ("torch's own and oneDNN's AVX2", "its own on all cores"):
        words = (
            "-m",
            "pytest",
            "-q",
            "--collect-only",
            "-p",
            "no:cacheprovider",
            "-p",
            "support.half",
            "-c",
            os.devnull,
        )
        done = run(setting, *words, str(tmp_path), seconds=60)
        halves.append({line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line})
    assert halves == [
        {"test_pair[v-y]", "test_pair[w-x]", "test_alone"},
        {"test_pair[v-x]", "test_pair[w-y]", "test_alone"},
    ]
    assert sorted(HALVES.values()) == [0, 0, 1, 1]
    assert {HALVES[setting] for setting, set_ in SETTINGS.items() if "ATEN_CPU_CAPABILITY" in set_} == {0, 1}


@pytest.mark.slow
def test_the_settings_are_taken_and_change_what_is_computed() -> None:
    found = {setting: run(setting, "-c", PROBE, seconds=60).stdout.splitlines() for setting in SETTINGS}
    units = {setting: lines[0].split()[0] for setting, lines in found.items()}
    assert units["the narrowest units"] == units["torch's narrowest and oneDNN's AVX2"] == "DEFAULT"
    cores = min(2, os.cpu_count() or 1)
    assert [int(lines[0].split()[1]) for lines in found.values()][:3] == [1, cores, 1]
    if units["its own on all cores"] != "DEFAULT":
        assert len({lines[1] for lines in found.values()}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_numbers_compare_on(setting: str) -> None:
    names = ["no:xdist", "no:cacheprovider", *([] if "ALL_CASES" in os.environ else ["support.half"])]
    plugins = [word for name in names for word in ("-p", name)]
    done = run(setting, "-m", "pytest", "-q", *plugins, *chosen(), seconds=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
