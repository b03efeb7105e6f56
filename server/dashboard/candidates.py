"""One candidate of a search: its figures, and its layers where the search keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy.orm import Session

from device_agent.contracts import decode
from search.domain.result import LayerFigures
from search.latency_axis import LatencyUnit
from server.dashboard.candidate_pages import CandidatePage
from server.dashboard.formats import count, latency
from server.dashboard.front import baseline_of, candidate_row, metric_of, unit_of
from server.dashboard.layers import layer_rows
from server.dashboard.pages import FrontRow, Tile
from server.dashboard.searches import over_words, search_devices, search_source
from server.searches.queries import get_search
from server.searches.repository import FRONT_LAYERS, get_document
from server.states import JobStage

#: Stages after which a search has kept the layers of its front.
_SEARCHED = (JobStage.TRAINING, JobStage.EXPORTING, JobStage.VERIFYING, JobStage.DONE)


def candidate_page(session: Session, search_id: str, candidate_id: str) -> CandidatePage:
    """Raises `NotFound`."""
    search = get_search(session, search_id)
    devices = search_devices(session, search)
    baseline = baseline_of(session, search)
    row = candidate_row(session, search_id, candidate_id, baseline, devices)
    text = get_document(session, search_id, FRONT_LAYERS)
    data = [] if text is None else json.loads(text).get(candidate_id, [])
    layers = [decode(LayerFigures, item) for item in data]
    unit = unit_of(baseline, [row])
    without = ""
    if not layers:
        is_searched = text is not None or search.stage in _SEARCHED
        without = (
            "Layers are kept of the candidates on the front."
            if is_searched
            else "Layers are kept of the front once it is found."
        )
    return CandidatePage(
        search_id=search_id,
        search_name=search.name,
        metric=metric_of(session, search),
        source=search_source(session, search_id),
        row=row,
        devices=devices,
        over_devices=over_words(search.config, len(devices)),
        unit=unit,
        layers=layer_rows(layers),
        without_layers=without,
        parts=_parts(row, layers, unit),
    )


def _parts(row: FrontRow, layers: Sequence[LayerFigures], unit: LatencyUnit) -> tuple[Tile, ...]:
    """Where the predicted latency goes on the first device: the largest layer, and what no layer accounts for."""
    tiles = [Tile(label="MACs", value=count(row.macs))]
    if not layers:
        return tuple(tiles)
    slowest = max(layers, key=lambda layer: layer.latency_ms[0])
    total = sum(layer.latency_ms[0] for layer in layers)
    tiles += [
        Tile(label="Layers", value=str(len(layers)), note=f"{latency(total, unit)} together"),
        Tile(label="Slowest layer", value=latency(slowest.latency_ms[0], unit), note=slowest.name),
    ]
    predicted = row.devices[0].predicted_latency_ms if row.devices else row.predicted_latency_ms
    if predicted is not None:
        rest = max(0.0, predicted - total)
        tiles.append(Tile(label="Whole network besides", value=latency(rest, unit), note="a constant of the device"))
    return tuple(tiles)
