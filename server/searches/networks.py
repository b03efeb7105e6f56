"""The network of a search that is submitted: read as a whole, and converted if need be, before it is queued."""

from __future__ import annotations

from dataclasses import replace

from device_agent.contracts import ContractError
from search.domain.config import ModelConfig, SearchConfig
from search.networks.file import read_document
from search.networks.searchable import check_searchable
from server.accounts.service import Principal
from server.catalog import repository
from server.catalog.naming import refused
from server.catalog.networks import checked, registered
from server.context import Context
from server.searches.data import check_artifact
from server.searches.visibility import sees_only

_FIELD = "config.model.network"


def usable_network(context: Context, config: SearchConfig, principal: Principal) -> ModelConfig:
    """The config's model with a `.kerf` file where an ONNX file stood.

    Files that nobody registered are registered under the search's name, but not with `multi_user`: what is registered
    is everybody's. Raises `Unprocessable` naming the field, the value and the remedy.
    """
    sha256 = config.model.network
    if sha256 is None:
        return config.model
    with context.database.read() as session:
        check_artifact(context, session, _FIELD, sha256, sees_only(context.settings, principal))
        known = list(dict.fromkeys(row.network_sha256 for row in repository.networks_of(session, sha256)))
    if len(known) > 1 and sha256 not in known:
        raise refused(
            _FIELD,
            f"the ONNX file {sha256} was registered as {len(known)} networks, of other sizes of the image: "
            f"name one of them: {', '.join(known)}",
        )
    if not known and context.settings.multi_user:
        known = [checked(context, sha256, _FIELD, created_by=principal.token_id)[0]]
    if not known:
        known = [registered(context, config.name, sha256, _FIELD, created_by=principal.token_id).network_sha256]
    network = sha256 if sha256 in known else known[0]
    try:
        check_searchable(read_document(context.store.path(network)), config)
    except ContractError as error:
        raise refused(_FIELD, str(error)) from None
    return replace(config.model, network=network)
