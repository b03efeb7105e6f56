"""/v1/devices and /v1/enrolment-codes: the fleet."""

from __future__ import annotations

from kerf.operations import Request, operation, procedure
from kerf.resources.base import MAX_PAGE, AsyncBound, Bound, Items, Page, SyncBound, collect
from kerf.schemas import DeviceView, EnrolmentCode

DAY_S = 86_400.0


class DeviceOperations(Bound):
    """Devices, and codes that let new ones enrol."""

    @operation("GET", "/v1/devices")
    def page(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Request[Page[DeviceView]]:
        """One page of the devices."""
        return Request(query={"limit": limit, "cursor": cursor})

    @procedure
    async def list(self, *, limit: int = MAX_PAGE, cursor: str | None = None) -> Items[DeviceView]:
        """Up to `limit` devices."""
        return await collect(self.session, DeviceOperations.page.prepare, limit, cursor)

    @operation("GET", "/v1/devices/{device_id}")
    def get(self, device_id: str) -> Request[DeviceView]:
        """One device."""
        return Request(path={"device_id": device_id})

    @operation("POST", "/v1/devices/{device_id}:enable", is_repeatable=True)
    def enable(self, device_id: str) -> Request[DeviceView]:
        """Give the device work again."""
        return Request(path={"device_id": device_id})

    @operation("POST", "/v1/devices/{device_id}:disable", is_repeatable=True)
    def disable(self, device_id: str) -> Request[DeviceView]:
        """Give the device no new work; it finishes what it holds."""
        return Request(path={"device_id": device_id})

    @operation("POST", "/v1/enrolment-codes")
    def create_enrolment_code(self, *, max_uses: int = 1, lifetime_s: float = DAY_S) -> Request[EnrolmentCode]:
        """A code with which `max_uses` devices may enrol. It is shown once."""
        return Request(json={"max_uses": max_uses, "lifetime_s": lifetime_s})


class Devices(DeviceOperations, SyncBound):
    pass


class AsyncDevices(DeviceOperations, AsyncBound):
    pass
