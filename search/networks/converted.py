"""What a conversion gives."""

from __future__ import annotations

from dataclasses import dataclass

from search.networks.file import Network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvertedNetwork:
    """A network that was checked against its original. `notes` say what the file does not hold of it."""

    network: Network
    notes: tuple[str, ...] = ()
