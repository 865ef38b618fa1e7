"""Keys: read from a file, kept as hashes, found in a header, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from svdiff_delta.errors import InputError
from svdiff_serve.errors import BusyError
from svdiff_serve.http.keys import read_keys
from svdiff_serve.http.pictures import PictureStore
from svdiff_serve.http.rates import Rates
from svdiff_serve.http.server import bind, check_open, is_loopback

ALICE, BOB = "alice-secret-0123456789", "bob-secret-0123456789abc"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "keys.txt"
    found.write_text(f"# who may paint\nalice {ALICE}\n\nbob {BOB}\n")
    return found


def test_a_key_says_whose_it_is(file: Path) -> None:
    keys = read_keys(file)
    assert len(keys) == 2
    assert keys.owner(f"Bearer {ALICE}") == "alice"
    assert keys.owner(f"bearer {BOB}") == "bob"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", f"Basic {ALICE}", f"Bearer {ALICE[:-1]}", ALICE])
def test_what_is_no_key_is_nobodys(file: Path, header: str | None) -> None:
    assert read_keys(file).owner(header) is None


def test_all_keys_are_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[int] = []
    own = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return own(one, other)

    monkeypatch.setattr("svdiff_serve.http.keys.hmac.compare_digest", compare)
    read_keys(file).owner("Bearer x")
    read_keys(file).owner(f"Bearer {ALICE}")
    assert compared == [32] * 4  # hashes of one length, and all of them whether one fits or not


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        (f"{ALICE}\n", "line 1 is not NAME KEY"),
        (f"a b {ALICE}\n", "line 1 is not NAME KEY"),
        ("alice short\n", "16 is the least"),
        (f"alice {ALICE}\nbob {ALICE}\n", "twice"),
        (f"alice {ALICE}\nbob {'ключ' * 4}\n", "ASCII"),
    ],
)
def test_a_file_that_is_none_is_refused_without_showing_a_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as found:
        read_keys(path)
    assert ALICE not in str(found.value)
    assert "short" not in str(found.value)


def test_a_rate_is_so_many_pictures_in_a_minute_for_each_key() -> None:
    now = [0.0]
    rates = Rates(6, lambda: now[0])
    rates.take("alice", 6)
    with pytest.raises(BusyError) as full:
        rates.take("alice", 1)
    assert full.value.retry_after == 10
    rates.take("bob", 6)
    now[0] = 10.0
    rates.take("alice", 1)
    Rates(0).take("alice", 10**9)


def test_pictures_go_after_their_time_and_the_oldest_when_there_are_too_many_bytes() -> None:
    now = [0.0]
    kept = PictureStore(most=10, seconds=5, clock=lambda: now[0])
    first, second = kept.put(b"1234"), kept.put(b"5678")
    assert (kept.get(first), kept.get(second), kept.get("x")) == (b"1234", b"5678", None)
    kept.put(b"9012")
    assert (kept.get(first), kept.get(second)) == (None, b"5678")
    now[0] = 6.0
    assert kept.get(second) is None


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)])
def test_without_keys_only_this_machine_is_listened_to(host: str, own: bool) -> None:
    assert is_loopback(host) is own
    if own:
        assert check_open(host, None, no_auth=False) is not None
    else:
        with pytest.raises(InputError, match="other machines"):
            check_open(host, None, no_auth=False)


def test_with_keys_or_on_ones_own_word_any_address_is_listened_to(file: Path) -> None:
    assert check_open("0.0.0.0", read_keys(file), no_auth=False) is None
    assert check_open("0.0.0.0", None, no_auth=True) is None


def test_a_port_in_use_is_said() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(InputError, match="could not be listened on"):
        bind("192.0.2.1", 0)
