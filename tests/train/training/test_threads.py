"""What a process computes with is undone afterwards: the tests in one process are many callers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from svdiff_train.training.threads import computing
from tools.build_tiny.build import main

TINY = 2.0**-140
"""Below the smallest normal number of float32."""


def kept() -> bool:
    """Whether arithmetic keeps numbers as small as that."""
    return bool(torch.tensor([2.0**-100]).mul(2.0**-40).item() == TINY)


def test_tiny_numbers_are_zero_within_and_kept_afterwards() -> None:
    assert kept()
    before = torch.get_num_threads()
    with computing(before + 1):
        assert not kept()
        assert torch.get_num_threads() == before + 1
        with computing(1):
            assert not kept()
        assert not kept(), "the inner end must leave what the outer one set"
    assert kept()
    assert torch.get_num_threads() == before


def test_an_error_undoes_it_too() -> None:
    with pytest.raises(ZeroDivisionError), computing(1):
        raise ZeroDivisionError
    assert kept()


def test_the_build_leaves_its_caller_as_it_was(tmp_path: Path) -> None:
    for vendor in ("google", "twitter"):
        (tmp_path / "npm" / vendor).mkdir(parents=True)
        (tmp_path / "npm" / vendor / "emoji.json").write_text("[]")
    before = torch.get_num_threads()
    main(["--work", str(tmp_path), "--stage", "fetch", "--threads", str(before + 1)])
    assert kept()
    assert torch.get_num_threads() == before
