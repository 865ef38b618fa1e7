"""Cache decompositions on disk: one entry per fingerprint, for all models that share a weight."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import filelock
import torch

from svdiff_delta._util.atomic import drop_lock, replace_file
from svdiff_delta._util.home import HOME_VARIABLE, home
from svdiff_delta._util.warned import warn_once
from svdiff_delta.base_model.devices import bases_beside, find_device
from svdiff_delta.errors import CacheError, DeltaError, OutputError

from .cache_entry import PROTOCOL, SUFFIX, BusyError, OlderEntry, encode_entry, hexadecimal, read_entry, touch_entry
from .decomposition import Basis, compute_bases, compute_basis
from .gpu_basis import compute_on, compute_together

PATIENCE: Final = 600.0
DAY: Final = 86_400.0  # seconds


@dataclass(frozen=True)
class Kept:
    """An entry on disk: its file, size in bytes, and when it was last used, in seconds since 1970."""

    path: Path
    bytes: int
    used: float


class BasisCache:
    """Bases on disk. Every entry is written atomically and checked when read; processes may share the folder.

    Args:
        root: the folder; `home() / "basis"` if not given.
        two_sided: keep both factors whole: entries are four times as large, and take half the products to use.
        device: where bases are computed; a weight that does not fit into a GPU's memory goes to the CPU.
        patience: seconds to wait for another process that computes the same basis. If it takes longer, it is computed
            here as well; with 0 `obtain` raises `BusyError` instead.

    Raises:
        InputError: there is no such device, or it has no float64.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        two_sided: bool = False,
        device: str | torch.device = "cpu",
        patience: float = PATIENCE,
    ) -> None:
        self.root: Final = (root or home() / "basis") / f"v{PROTOCOL}"
        self.two_sided: Final = two_sided
        self.device: Final = find_device(device, float64=True)
        self.patience: Final = patience

    @classmethod
    def beside(cls, device: torch.device) -> BasisCache:
        """Return the default cache for a model on a device: bases are computed there if it is fast in float64.

        Else they are computed on the CPU, which most cards are slower than in float64.
        """
        return cls(device=bases_beside(device))

    def impatient(self) -> BasisCache:
        """Return the same cache, which never waits: with it several processes share out what is to be computed."""
        return BasisCache(self.root.parent, two_sided=self.two_sided, device=self.device, patience=0)

    def path(self, key: str) -> Path:
        """Return where the entry for a fingerprint lies."""
        name = hexadecimal(key)
        return self.root / name[:2] / f"{name}{SUFFIX}"

    def has(self, key: str) -> bool:
        """Tell whether there is a file for a fingerprint; it is not read."""
        return self.path(key).exists()

    def get(self, key: str) -> Basis | None:
        """Return the entry for a fingerprint; None if there is none that can be used.

        A damaged one is reported; those of an earlier version are once for all of them.
        """
        path = self.path(key)
        try:
            basis = read_entry(path, key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OlderEntry:
            why = "entries that an earlier version made, without their fingerprints, are computed again"
            warn_once(f"{self.root}: {why}", self.root, "older")
            return None
        except (OSError, DeltaError) as error:
            warn_once(f"{path}: damaged cache entry, computing it again ({error})", path)
            return None
        with suppress(OSError):
            touch_entry(path)
        if (lock := path.with_suffix(".lock")).exists():
            drop_lock(lock)  # of a process that was killed when it had written the entry
        return basis

    def put(self, key: str, basis: Basis) -> None:
        """Write an entry.

        Raises:
            OutputError: the folder cannot be made, or the disk refused.
        """
        path = self.path(key)
        _make_folder(path.parent)
        with replace_file(path, overwrite=True) as stream:
            for part in encode_entry(basis, key):
                stream.write(part)

    def obtain(self, key: str, rounded: torch.Tensor, axis: int) -> Basis:
        """Return the entry for a fingerprint, computed and kept if it is not there yet.

        Args:
            key: the fingerprint.
            rounded: the rounded weight.
            axis: its axis of output channels.

        Raises:
            BusyError: `patience` is 0, and another process computes it now.
        """
        basis = self._usable(key)
        if basis is not None:
            return basis
        with self._lock(key) as mine:
            basis = self._usable(key)  # another process may have been faster
            if basis is None and not mine and not self.patience:
                raise BusyError
            return self._compute(key, rounded, axis) if basis is None else basis

    def _usable(self, key: str) -> Basis | None:
        basis = self.get(key)
        whole = basis is not None and basis.tail.shape[0] + basis.null == basis.sigma.numel()
        return basis if whole or not self.two_sided else None

    def _compute(self, key: str, rounded: torch.Tensor, axis: int) -> Basis:
        def compute(weight: torch.Tensor) -> Basis:
            return compute_basis(weight, axis, two_sided=self.two_sided)

        basis = compute_on(self.device, rounded, compute)
        self._put(key, basis)
        return basis

    def fill(self, weights: Mapping[str, tuple[torch.Tensor, int]]) -> None:
        """Compute what is not there yet of weights of one shape at once, on the GPU where bases are computed.

        What another process computes now is left to it. Where memory is not enough for all of them nothing is done:
        `obtain` computes each then.

        Args:
            weights: rounded weights with their axes of output channels, by fingerprint.
        """
        impatient = self.impatient()
        with ExitStack() as stack:
            mine = [key for key in weights if stack.enter_context(impatient._lock(key)) and self._usable(key) is None]
            if len(mine) > 1:
                self._fill({key: weights[key] for key in mine})

    def _fill(self, weights: Mapping[str, tuple[torch.Tensor, int]]) -> None:
        axes = [axis for _, axis in weights.values()]

        def compute(there: Sequence[torch.Tensor]) -> list[Basis]:
            return compute_bases(list(zip(there, axes, strict=True)), two_sided=self.two_sided)

        found = compute_together(self.device, [rounded for rounded, _ in weights.values()], compute)
        if found is not None:
            for key, basis in zip(weights, found, strict=True):
                self._put(key, basis)

    def _put(self, key: str, basis: Basis) -> None:
        """Write an entry, or say that none can be written."""
        try:
            self.put(key, basis)
        except OutputError as error:
            warn_once(f"going on without the basis cache: {error}", self.root)

    @contextmanager
    def _lock(self, key: str) -> Iterator[bool]:
        """Hold the right to compute an entry; yield whether it was got in time.

        The system releases it when a process ends, however it ends. Who does not get it may compute as well: entries
        are written atomically, so all it costs is time.
        """
        path = self.path(key).with_suffix(".lock")
        lock = filelock.FileLock(path, timeout=self.patience)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            yield False
            return
        except OSError:  # a folder that cannot be written: `_compute` says so
            yield True
            return
        except BaseException:  # a signal
            lock.release()
            drop_lock(path)
            raise
        try:
            yield True
        finally:
            with suppress(OSError):
                path.unlink()
            lock.release()

    def entries(self) -> list[Kept]:
        """Return all entries, the one that was not used for longest first."""
        found = []
        for path in self.root.glob(f"*/*{SUFFIX}"):
            with suppress(FileNotFoundError):  # another process may prune
                about = path.stat()
                found.append(Kept(path, about.st_size, max(about.st_mtime, about.st_atime)))
        return sorted(found, key=lambda kept: (kept.used, kept.path))

    def damaged(self) -> list[tuple[Path, str]]:
        """Read every entry; return those that are damaged, or not where they belong, with the reason."""
        found = []
        for kept in self.entries():
            try:
                read_entry(kept.path, self._key(kept.path), once=False)
            except FileNotFoundError:
                continue
            except (OSError, DeltaError) as error:
                found.append((kept.path, str(error)))
        return found

    def _key(self, path: Path) -> str:
        """Return the fingerprint whose entry lies at a path.

        Raises:
            CacheError: none does.
        """
        with suppress(ValueError):
            key = urlsafe_b64encode(bytes.fromhex(path.stem)).decode().rstrip("=")
            if self.path(key) == path:
                return key
        raise CacheError("its name is not the one of a fingerprint's entry")

    def prune(self, most: int, *, dry_run: bool = False) -> list[Kept]:
        """Remove the entries that were not used for longest until the rest has at most `most` bytes; return them.

        What processes that were killed left half written goes as well.
        """
        kept = self.entries()
        if not dry_run:
            self._sweep()
        left, removed = sum(entry.bytes for entry in kept), []
        for entry in kept:
            if left <= most:
                break
            if not dry_run:
                remove(entry.path)
            left -= entry.bytes
            removed.append(entry)
        return removed

    def _sweep(self) -> None:
        """Remove temporary files and locks that nothing has touched for a day."""
        for path in self.root.glob("*/*"):
            with suppress(OSError):
                if path.suffix != SUFFIX and path.stat().st_mtime < time.time() - DAY:
                    path.unlink()


def remove(path: Path) -> None:
    """Remove an entry, if it is still there.

    Raises:
        OutputError: the system refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: could not be removed ({error.strerror})") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: could not be made ({error.strerror})", fix=f"set {HOME_VARIABLE}") from None
