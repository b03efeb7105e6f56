"""Battery, charger and screen: what phones make their speed depend on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from device_agent.measuring.sysfs import first_integer, first_number, read_text

#: Backlights: of Linux, and of Android's older drivers.
_BACKLIGHTS = ("sys/class/backlight/*", "sys/class/leds/lcd-backlight")


def read_battery_percent(root: Path = Path("/")) -> float | None:
    """How full the battery is; None where there is none."""
    for supply in _batteries(root):
        percent = first_number(supply / "capacity")
        if percent is not None and 0 <= percent <= 100:
            return percent
    return None


def read_charging(root: Path = Path("/")) -> bool | None:
    """Whether the battery is not being used up; None where there is none."""
    for supply in _batteries(root):
        status = (read_text(supply / "status") or "").lower()
        if status in ("charging", "full", "not charging"):
            return True
        if status == "discharging":
            return False
    return None


def read_screen_on(root: Path = Path("/")) -> bool | None:
    """Whether a screen is lit; None where no backlight is known."""
    lit = []
    for pattern in _BACKLIGHTS:
        for backlight in sorted(root.glob(pattern)):
            brightness = first_integer(backlight / "brightness")
            if brightness is not None:
                # 0 is on, 4 is off (FB_BLANK_UNBLANK, FB_BLANK_POWERDOWN); not every driver has the file.
                lit.append(brightness > 0 and (first_integer(backlight / "bl_power") or 0) == 0)
    return any(lit) if lit else None


def _batteries(root: Path) -> Iterator[Path]:
    for supply in sorted(root.glob("sys/class/power_supply/*")):
        if (read_text(supply / "type") or "").lower() == "battery":
            yield supply
