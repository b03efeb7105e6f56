"""What agents call. The bodies are the contract classes of `device_agent.contracts.lease`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from device_agent.contracts import (
    EnrolmentAnswer,
    EnrolmentRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LeaseAnswer,
    LeaseRequest,
    RenewAnswer,
    RenewRequest,
    ReportAnswer,
    ReportBatch,
)
from server.accounts.service import Principal
from server.context import Agent, ContextDep, count_failure
from server.errors import Forbidden
from server.fleet import service
from server.wire import PROBLEMS, ContractResponse, answer, body_of, body_schema

router = APIRouter(prefix="/v1", tags=["agents"], responses=PROBLEMS)

#: The only JSON that is read without a token, and reading much takes all of the process for a while. A profile with
#: runtimes has some KiB.
MAX_ENROLMENT_BYTES = 256 << 10


@router.post("/agents:enrol", openapi_extra=body_schema("EnrolmentRequest"), responses=answer(EnrolmentAnswer))
def enrol(
    request: Request,
    context: ContextDep,
    body: Annotated[EnrolmentRequest, Depends(body_of(EnrolmentRequest, max_bytes=MAX_ENROLMENT_BYTES))],
) -> Response:
    """Exchange an enrolment code for a device and its token. Repeating it gives the same device a new token."""
    try:
        return ContractResponse(service.enrol(context, body))
    except Forbidden:
        count_failure(request, context)
        raise


@router.post("/agents:heartbeat", openapi_extra=body_schema("HeartbeatRequest"), responses=answer(HeartbeatAnswer))
def heartbeat(
    context: ContextDep, agent: Agent, body: Annotated[HeartbeatRequest, Depends(body_of(HeartbeatRequest))]
) -> Response:
    """Say that the agent lives, and how its device is."""
    return ContractResponse(service.heartbeat(context, _device(agent), body))


@router.post("/leases", openapi_extra=body_schema("LeaseRequest"), responses=answer(LeaseAnswer))
async def lease(
    request: Request,
    context: ContextDep,
    agent: Agent,
    body: Annotated[LeaseRequest, Depends(body_of(LeaseRequest))],
) -> Response:
    """Get tasks, waiting for the first if there are none. Asking again returns what is held."""
    lent = await service.lend_waiting(context, _device(agent), body, request.is_disconnected)
    return ContractResponse(LeaseAnswer(leases=lent))


@router.post("/leases/{lease_id}:renew", openapi_extra=body_schema("RenewRequest"), responses=answer(RenewAnswer))
def renew(
    lease_id: str, context: ContextDep, agent: Agent, body: Annotated[RenewRequest, Depends(body_of(RenewRequest))]
) -> Response:
    """Keep a lease. 409: it is no longer yours."""
    return ContractResponse(service.renew(context, _device(agent), lease_id, body.attempt))


@router.post("/leases/{lease_id}:release", status_code=204, openapi_extra=body_schema("RenewRequest"))
def release(
    lease_id: str, context: ContextDep, agent: Agent, body: Annotated[RenewRequest, Depends(body_of(RenewRequest))]
) -> Response:
    """Give a lease back unused. 409: it is no longer yours."""
    service.release(context, _device(agent), lease_id, body.attempt)
    return Response(status_code=204)


@router.post("/reports", openapi_extra=body_schema("ReportBatch"), responses=answer(ReportAnswer))
def report(context: ContextDep, agent: Agent, body: Annotated[ReportBatch, Depends(body_of(ReportBatch))]) -> Response:
    """Hand results over. Repeating it is harmless."""
    return ContractResponse(service.report(context, _device(agent), body))


def _device(agent: Principal) -> str:
    if agent.device_id is None:
        raise Forbidden("the token belongs to no device: enrol the agent")
    return agent.device_id
