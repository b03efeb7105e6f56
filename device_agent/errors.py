"""Every error of the agent, sorted by what the caller must do about it.

AgentError
  SettingsError         correct the setting that the text names
  StateError            the state directory cannot be used
  EnrolmentNeeded       run `kerf-agent enrol`
  ArtifactError         the task cannot run: its file did not arrive whole
  ServerError
    TryAgainLater       repeat the request after a pause
    RequestRefused      do not repeat this request
      CredentialsRefused  the token is no longer good: enrol again
      LeaseLost           the lease belongs to someone else now: drop it
"""

from __future__ import annotations


class AgentError(Exception):
    """The agent cannot go on."""


class SettingsError(AgentError):
    """A setting is missing or wrong."""


class StateError(AgentError):
    """The state directory cannot be used."""


class ProbeFailed(AgentError):
    """The child process that asks the runtimes what they are failed itself."""


class EnrolmentNeeded(AgentError):
    """This agent has no token for the server yet."""


class ArtifactError(AgentError):
    """An artifact did not arrive, or does not have the promised size and hash."""


class ServerError(AgentError):
    """The server, or what stands in front of it, did not do what was asked."""


class TryAgainLater(ServerError):
    """The request may succeed later. `retry_after_s` is the pause that the server asked for, if any."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestRefused(ServerError):
    """The server understood the request and refuses it. `code` is the problem's machine-readable name."""

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class CredentialsRefused(RequestRefused):
    """The server does not accept this agent's token or enrolment code."""


class LeaseLost(RequestRefused):
    """The lease is no longer this agent's."""
