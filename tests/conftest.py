"""Fixtures that several packages of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.cli.local_stack import LocalStack, StackOptions, running_stack


@pytest.fixture(scope="session")
def simulated_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """One server, worker and agent of a simulated device for the whole session, as real processes."""
    options = StackOptions(state_dir=tmp_path_factory.mktemp("stack"), simulated=True)
    with running_stack(options) as stack:
        yield stack
