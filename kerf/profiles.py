"""Servers by name: `kerf auth login` keeps address and token of each in a file that only its user reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kerf.errors import NotConfigured
from kerf.local import SERVER_VARIABLE, TOKEN_VARIABLE

PROFILE_VARIABLE = "KERF_PROFILE"
DEFAULT_PROFILE = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A server and the token for it, which goes to no other."""

    server: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """All profiles by name; `current` is the one that is used where none is named, None where that is none."""

    current: str | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def chosen(self) -> Profile | None:
        """The profile that `KERF_PROFILE` names, else the current one. Raises `NotConfigured` for an unknown name."""
        named = os.environ.get(PROFILE_VARIABLE)
        if named and named not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none"
            raise NotConfigured(
                f"there is no profile {named!r} ({PROFILE_VARIABLE}); there are {known}: make it with "
                f"`kerf auth login --profile {named}`"
            )
        name = named or self.current
        return None if name is None else self.profiles[name]

    def with_profile(self, name: str, profile: Profile) -> Profiles:
        """With `name` added or changed, and current. Raises `NotConfigured` for what is no name."""
        if not _NAME.fullmatch(name):
            raise NotConfigured(f"the profile {name!r} must be letters, digits, '_', '.' and '-', at most 64")
        return Profiles(current=name, profiles={**self.profiles, name: profile})

    def without(self, name: str) -> Profiles:
        """Without a profile. Raises `NotConfigured` where it is not there."""
        self.check(name)
        left = {known: profile for known, profile in self.profiles.items() if known != name}
        return Profiles(current=None if self.current == name else self.current, profiles=left)

    def using(self, name: str) -> Profiles:
        """With another current profile. Raises `NotConfigured` where it is not there."""
        self.check(name)
        return replace(self, current=name)

    def check(self, name: str) -> None:
        """Raise `NotConfigured` where there is no such profile."""
        if name not in self.profiles:
            known = ", ".join(sorted(self.profiles)) or "none"
            raise NotConfigured(f"there is no profile {name!r}; there are {known}: see `kerf auth status`")


def with_profile(server: str | None, token: str | None) -> tuple[str | None, str | None]:
    """`server` and `token`, or `KERF_SERVER` and `KERF_TOKEN`, with what is missing from the chosen profile: its server
    where none is named, its token only for its own server.

    Raises `NotConfigured` where the profile that is named is not there, or the file is damaged.
    """
    server = server or os.environ.get(SERVER_VARIABLE)
    token = token or os.environ.get(TOKEN_VARIABLE)
    if server and token:
        return server, token
    profile = read_profiles().chosen()
    if profile is None or (server and server.rstrip("/") != profile.server):
        return server, token
    return profile.server, token or profile.token


def profiles_path() -> Path:
    """`$XDG_CONFIG_HOME/kerf/profiles.json`, or the same under `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "kerf" / "profiles.json"


def read_profiles() -> Profiles:
    """All profiles; none where there is no file. Raises `NotConfigured` where the file is damaged."""
    path = profiles_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Profiles()
    except OSError as error:
        raise NotConfigured(f"cannot read {path}: {error.strerror}") from None
    try:
        data = json.loads(text)
        found = {str(name): Profile(**entry) for name, entry in data["profiles"].items()}
        current = data["current"]
        if current is not None and current not in found:
            raise ValueError(f"{current!r} is not there")
        return Profiles(current=current, profiles=found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotConfigured(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it and use `kerf auth login` again"
        ) from None


def write_profiles(profiles: Profiles) -> None:
    """Write the file, whole or not at all, for this user alone."""
    path = profiles_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = json.dumps(asdict(profiles), indent=1, sort_keys=True) + "\n"
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
