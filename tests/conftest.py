"""Fixtures for all tests. Only what files with torch need imports it, so that the light half's tests stay light."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.hub import Hub, serve

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the Hub's library is imported: no test leaves this machine

collect_ignore_glob: list[str] = []
if find_spec("bitsandbytes") is None:  # `make test` has the libraries that quantize in the second of its runs alone
    collect_ignore_glob += ["delta/runtime/test_quantized*.py", "train/memory/test_quantized*.py"]
if find_spec("playwright") is None:  # `make browser` installs it
    collect_ignore_glob += ["serve/board/browser"]


def seed() -> None:
    """Seed torch's own generator, which begins anywhere in each process: no test depends on luck or on others."""
    if torch := sys.modules.get("torch"):
        # `torch.manual_seed` notes the whole stack for each kind of device that is not there: a millisecond a call.
        (torch.manual_seed if torch.backends.cuda.is_built() else torch.default_generator.manual_seed)(0)


def pass_over_what_is_there() -> None:
    """Let the garbage collector pass over all that lives now, which it would look at again and again.

    Modules and tests are millions of objects: a tenth of the suite's time.
    """
    gc.collect()
    gc.freeze()


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed each file that imports torch, before it does: some make layers then. Meanwhile no garbage is looked for."""
    if isinstance(collector, pytest.Session):
        gc.disable()
    if isinstance(collector, pytest.Module):
        if re.search(r"^(import|from) torch\b", collector.path.read_text("utf-8"), re.MULTILINE):
            importlib.import_module("torch")
        seed()


def pytest_collection_finish() -> None:
    """Look for garbage again, among what tests make."""
    gc.enable()
    pass_over_what_is_there()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Pass over what a file's tests have imported, once they are done."""
    if nextitem is not None and nextitem.path != item.path:
        pass_over_what_is_there()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed what fixtures draw."""
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seed what the test draws, whether its fixtures were there already or not."""
    seed()


LONG = (
    ("test_kills.py", "test_wheel.py", "test_language_models.py"),
    ("test_compile.py", "test_ways.py", "test_demo.py", "test_sharding.py", "test_processes.py", "test_checkpoint.py"),
)
"""Files whose slow tests take minutes: what two processes begin with, side by side."""


@pytest.hookimpl(trylast=True)  # once what is not asked for is gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes minutes first in both halves, with which two processes begin: nothing long is left for the end.

    The walks over vector units are longest. What comes from the end of a half when the other is done is short.
    """
    walks = [each for each in items if each.name.startswith("test_numbers_compare_on[")]
    if walks:
        one, two = ([each for name in names for each in items if each.path.name == name] for names in LONG)
        one, two = [*walks[::2], *one], [*walks[1::2], *two]
        first = {*one, *two}
        others = [each for each in items if each not in first]
        half = max(0, len(items) // 2 - len(one))
        items[:] = [*one, *others[:half], *two, *others[half:]]


def pytest_configure(config: pytest.Config) -> None:
    """Keep away from the user's own cache what test files compute while they are collected."""
    folder = tempfile.TemporaryDirectory(prefix="svdiff-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["SVDIFF_HOME"] = folder.name


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the basis cache of all tests in one temporary folder, never in the user's own."""
    folder = tmp_path_factory.mktemp("home")
    before = os.environ["SVDIFF_HOME"]
    os.environ["SVDIFF_HOME"] = str(folder)
    yield folder
    os.environ["SVDIFF_HOME"] = before


@pytest.fixture(scope="module")
def rough_class_pictures() -> Iterator[None]:
    """Paint pictures of a class in 2 steps, not 30, for tests of what is done with them, whatever they look like."""
    from svdiff_train.training import class_images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_images, "SAMPLING", dataclasses.replace(class_images.SAMPLING, steps=2))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local Hub cache, empty."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return folder


@pytest.fixture
def unreachable(cache: Path) -> Path:
    """The local Hub cache, without network."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE  # as all tests are
    return cache


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, which the Hub's own library talks to."""
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # which diffusers asks
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it speaks LFS, not xet
        yield hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the Hub's library would have waited before it tried again; it does not."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, time=time.time, monotonic=time.monotonic)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", clock)
    return waited


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """The token of `owner`, set as users set it."""
    from support.hub import TOKEN

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN
