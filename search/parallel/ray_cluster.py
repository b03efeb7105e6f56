"""A crew of processes on the hosts of a Ray cluster: placement and the loss of hosts are Ray's.

Every process is an actor that does one piece at a time and is never restarted or retried by Ray: what a death costs is
decided once, in `search.parallel.crew`. Actors are not detached, so they end with the process that asked for them. All
hosts need the same release of Kerf, Ray and Python, and a network that nobody else can reach: a Ray cluster runs what
it gets. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on all of them.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from device_agent.contracts import ContractError
from search.parallel.crew import Contact, CrewUnavailable, Died, Do, Done, Outcome, Prepare

NAMESPACE = "kerf"
#: How long the cluster may take to give the first process: a host may have to come up for it.
START_TIMEOUT_S = 300.0
_CONNECT_TIMEOUT_S = 5.0


class Member:
    """A process of the cluster."""

    def __init__(self, prepare: bytes) -> None:
        self._prepare = prepare
        self._do: Do | None = None

    def release(self) -> str:
        """Which Kerf this host has; that it answers says that it is there."""
        return _release()

    def do(self, piece: bytes) -> bytes:
        if self._do is None:
            self._do = pickle.loads(self._prepare)()
        return pickle.dumps(self._do(pickle.loads(piece), Contact()), pickle.HIGHEST_PROTOCOL)


@dataclass(slots=True, eq=False)
class _Hand:
    """An actor as seen from here. `answer` is to what it was asked, if anything: without a ticket, if it is there."""

    actor: Any
    answer: Any
    ticket: int | None = None


class RayCrew:
    """Up to `size` actors, asked for as pieces come.

    Args:
        prepare: See `search.parallel.crew`.
        size: How many actors; 0 is as many as fit into the cluster as it is at first.
        address: Of the cluster: "HOST:PORT" of its head, or "auto" on one of its hosts.
        cpus: That Ray sets aside for each actor.
        gpus: Likewise; a part of one shares it.
        start_timeout_s: After that, a cluster without room for a single actor is `CrewUnavailable`.
    """

    def __init__(
        self,
        prepare: Prepare,
        size: int,
        *,
        address: str,
        cpus: float = 1.0,
        gpus: float = 0.0,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        if find_spec("ray") is None:
            raise ContractError(f"KERF_RAY_ADDRESS is {address!r}, but Ray is not installed: pip install 'kerf[ray]'")
        self._prepare = prepare
        self._asked_size = size
        self._address = address
        self._cpus = cpus
        self._gpus = gpus
        self._start_timeout_s = start_timeout_s
        self._prepared: Any = None
        self._size: int | None = None
        self._hands: list[_Hand] = []
        self._waiting: deque[tuple[int, Any]] = deque()
        self._idle_since_s: float | None = None

    @property
    def size(self) -> int:
        if self._size is None:
            with _available():
                self._connect()
                self._size = self._asked_size or self._room()
        return self._size

    def submit(self, ticket: int, piece: Any) -> None:
        self._waiting.append((ticket, piece))

    def wait(self, timeout_s: float, contact: Contact) -> Sequence[Outcome]:
        import ray

        with _available():
            self._connect()
            self._staff()
            answers = {hand.answer: hand for hand in self._hands if hand.answer is not None}
            ray.wait(list(answers), num_returns=1, timeout=timeout_s, fetch_local=False)
            ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0)
            outcomes = [outcome for answer in ready if (outcome := self._answered(answers[answer])) is not None]
        self._require_hands()
        return outcomes

    def close(self) -> None:
        import ray

        for hand in self._hands:
            with contextlib.suppress(Exception):
                ray.kill(hand.actor)
        self._hands.clear()
        self._waiting.clear()
        self._prepared = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hands:
            self.close()

    def _connect(self) -> None:
        """Be a driver of the cluster; one that is there already is kept."""
        import ray

        if not ray.is_initialized():
            _require_head(self._address)
            with _own_signals():
                ray.init(
                    address=self._address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    configure_logging=False,
                )
        if self._prepared is None:
            # Once for the whole cluster, and not with every actor.
            self._prepared = ray.put(pickle.dumps(self._prepare, pickle.HIGHEST_PROTOCOL))

    def _room(self) -> int:
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        room = resources.get("CPU", 0.0) // self._cpus
        if self._gpus:
            room = min(room, resources.get("GPU", 0.0) / self._gpus)
        if room < 1:
            raise CrewUnavailable(f"the Ray cluster at {self._address} has no room for {self._wanted}: {resources}")
        return int(room)

    @property
    def _wanted(self) -> str:
        return f"{self._cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")

    def _staff(self) -> None:
        """Give pieces to actors that are free, and ask for more actors where there are too few."""
        import ray

        for hand in self._hands:
            if hand.answer is None and self._waiting:
                hand.ticket, piece = self._waiting.popleft()
                hand.answer = hand.actor.do.remote(pickle.dumps(piece, pickle.HIGHEST_PROTOCOL))
        starting = sum(hand.ticket is None for hand in self._hands)
        for _ in range(min(len(self._waiting) - starting, self.size - len(self._hands))):
            actor: Any = (
                ray.remote(Member)
                .options(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_task_retries=0)
                .remote(self._prepared)
            )
            self._hands.append(_Hand(actor, actor.release.remote()))

    def _answered(self, hand: _Hand) -> Outcome | None:
        """What an actor answered or died of; None where it only said that it is there."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        ticket, answer = hand.ticket, hand.answer
        hand.ticket = hand.answer = None
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            if ticket is None:
                raise
            return Done(ticket, error=error.cause if isinstance(error.cause, BaseException) else error)
        except (RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError) as error:
            self._hands.remove(hand)
            with contextlib.suppress(Exception):
                ray.kill(hand.actor)
            if ticket is None:
                if getattr(error, "actor_init_failed", False):
                    raise
                return None
            self._ask_the_idle()
            return Died(ticket, _first_line(error))
        if ticket is not None:
            return Done(ticket, pickle.loads(result))
        if result != _release():
            raise CrewUnavailable(
                f"a host of the Ray cluster has Kerf {result}, this one {_release()}: install one release on all"
            )
        return None

    def _ask_the_idle(self) -> None:
        """With one actor its whole host may be gone: no piece goes to another before that has answered."""
        for hand in self._hands:
            if hand.answer is None:
                hand.answer = hand.actor.release.remote()

    def _require_hands(self) -> None:
        """Raise `CrewUnavailable` where no actor has been there for too long."""
        if not self._waiting or any(hand.ticket is not None or hand.answer is None for hand in self._hands):
            self._idle_since_s = None
            return
        now_s = time.monotonic()
        self._idle_since_s = self._idle_since_s or now_s
        if now_s - self._idle_since_s > self._start_timeout_s:
            raise CrewUnavailable(
                f"the Ray cluster at {self._address} gave no process with {self._wanted} within "
                f"{self._start_timeout_s:g} s: add hosts, or ask for less with KERF_EVALUATOR_THREADS"
            )


@contextlib.contextmanager
def _available() -> Iterator[None]:
    """Turn what Ray raises about itself into `CrewUnavailable`, and leave a cluster that does not answer."""
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, OSError, RuntimeError, ValueError) as error:
        import ray

        with contextlib.suppress(Exception):
            ray.shutdown()
        raise CrewUnavailable(f"the Ray cluster does not do what it should: {_first_line(error)}") from error


def _require_head(address: str) -> None:
    """Raise `OSError` or `ValueError` where nobody listens: Ray would try for many minutes, deaf to all else."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S):
        pass


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's way to end: Ray puts its own in place of it, which does not wait for anything."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _release() -> str:
    try:
        return version("kerf")
    except PackageNotFoundError:
        return "unknown"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
