"""One browser, and one server that no test changes; each test has pages of its own, in which nothing may go wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from support.browser import PHONE, STEPS, WIDE, BoardPage, chromium
from support.served import server

from svdiff_serve.http.server import check_open
from svdiff_serve.service import Service
from svdiff_serve.settings import Defaults, Limits

expect.set_options(timeout=20_000)  # a machine may be busy; what is expected comes as soon as it is there


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def site(board_service: Service) -> Iterator[str]:
    """A server of the deltas of `fill_board`."""
    hosts = check_open("127.0.0.1", None, no_auth=False)
    with server(board_service, hosts=hosts, limits=Limits(), defaults=Defaults(steps=STEPS)) as (url, _, _):
        yield url


@pytest.fixture
def new_page(browser: Browser, site: str) -> Iterator[Callable[..., BoardPage]]:
    """Makes pages, each of a browser's user of its own; at the end nothing of them may have gone wrong."""
    made: list[BoardPage] = []
    contexts = []

    def make(url: str = site, *, phone: bool = False, scheme: str = "light", **context: Any) -> BoardPage:
        width, height = PHONE if phone else WIDE
        context |= {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "has_touch": phone}
        contexts.append(browser.new_context(reduced_motion="reduce", **context))
        contexts[-1].grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        made.append(BoardPage(contexts[-1].new_page(), url))
        return made[-1]

    yield make
    for each in contexts:
        each.close()
    for board in made:
        assert board.faults == []
        assert board.elsewhere == []


@pytest.fixture
def board(new_page: Callable[..., BoardPage]) -> BoardPage:
    """A page that nothing is opened in yet."""
    return new_page()
