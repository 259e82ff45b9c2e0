"""The Ray launcher: each run is a task of a Ray cluster, tried again elsewhere where its node is lost."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from ftbench.errors import FtbenchError, UsageError
from ftbench.execution.attempt import Probe, Ticket, attempt, remove_unfinished
from ftbench.execution.ending import check_store
from ftbench.execution.events import Event, read_event, write_event
from ftbench.execution.launcher import Order
from ftbench.execution.local import publish_failure
from ftbench.execution.room import Cluster, ask_for, check_room
from ftbench.execution.unfinished import forget, state_file
from ftbench.execution.workers import Stopped
from ftbench.recipe import Recipe
from ftbench.results.address import outbox, url_of
from ftbench.results.delivery import deliver_or_keep
from ftbench.results.mirror import fetched
from ftbench.results.result import Status
from ftbench.results.store import Run, read_run

RETRIES = 3
"""How often a run is tried again where its node was lost, or its process on the node; or that node's memory ran out."""
_ENDING = 10.0
"""Seconds that processes which are being ended are waited for."""
_ARRIVES = 60.0
"""Seconds in which a run that was published on a node must be seen here."""
_LONGEST_QUEUE = 1000
_END = ("", "")
"""What the listener is told when there is nothing more to hear."""
_ANSWERS = 10.0
"""Seconds that a cluster's address is waited for."""
_OBJECT_STORE = 100 * 2**20
"""Bytes of Ray's object store, through which nothing goes here; its own choice would take a third of the memory."""


class RayLauncher:
    """Makes runs on the nodes of a Ray cluster, or of a Ray that is started here for the time being.

    Every run asks for its cards, for its share of a node's cores, and on the processor for the memory of its budget;
    Ray finds the node. All nodes see the folder of runs under the same path, or reach its URL.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None) -> None:
        """Use the cluster at `address`, with at most `jobs` runs at once on a node."""
        self._jobs = jobs or 1
        self._is_limited = jobs is not None
        self._address = address
        self._ident = uuid.uuid4().hex
        self._probe = Probe(self._ident)
        self._lock = threading.Lock()
        self._listeners: dict[str, Callable[[Event], None]] = {}
        self._tasks: dict[str, Any] = {}
        self._stopped = False
        self._ray: Any = None
        self._cluster: Any = None
        self._post: Any = None

    def __enter__(self) -> Self:
        """Connect to the cluster, or start one; see the protocol."""
        self._ray = _start(self._address or os.environ.get("RAY_ADDRESS"))
        self._cluster = Cluster(self._ray)
        here = self._ray.get_runtime_context().get_node_id()
        beside_driver = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        actor = self._ray.remote(Post).options(num_cpus=0, scheduling_strategy=beside_driver, max_concurrency=1000)
        self._post = actor.remote()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._probe.remove()
            self._post.put.options(num_returns=0).remote(*_END)
            self._listener.join(_ENDING)  # a thread that asks Ray for something while it is shut down ends the process
        finally:
            self._ray.shutdown()

    def at_once(self, recipes: Sequence[Recipe]) -> int:
        """Return how many runs may wait for Ray to find them a node."""
        return max(1, min(len(recipes), _LONGEST_QUEUE))

    def launch(self, order: Order, on_event: Callable[[Event], None]) -> Run:
        """Make a run on some node; see the protocol.

        A run whose node is lost again and again, or that no node has room for, is published as failed; one that Ray
        ended because its node had no memory left, as out-of-memory.

        Raises:
            Stopped, FtbenchError: as the protocol says.
        """
        ident = uuid.uuid4().hex
        is_shared, box = url_of(order.out) is None, outbox(order.out)
        if is_shared:
            self._probe.write(order.out)
            if order.fresh:  # once: a try on another node goes on from what the lost one has kept
                forget(state_file(order.recipe, box))
        try:
            resources = self._resources(order)
            ticket = Ticket.write(order, ident, self._probe.name, int(resources["num_cpus"]))
            name = self._ask(ticket, resources, on_event)
        except FtbenchError as error:
            if is_shared:
                check_store(order.out, order.recipe)
            # At a URL the node may hold the run, and send it later: a failure of the same launch would take its place.
            launch = ident if is_shared else uuid.uuid4().hex
            status: Status = "out-of-memory" if isinstance(error, _NoMemoryError) else "failed"
            failure = publish_failure(order.recipe, order.registry, box, order.tuning, status, str(error), launch)
            return deliver_or_keep(failure)
        finally:
            remove_unfinished(box, [ident], _ENDING)  # of tries that were ended with their node
        return _patiently(lambda: read_run(order.out / name if is_shared else fetched(order.out, name)))

    def stop(self) -> None:
        """End all tasks, and with them their workers."""
        with self._lock:
            self._stopped = True
            tasks = list(self._tasks.values())
        for task in tasks:
            self._ray.cancel(task, force=True)

    def _ask(self, ticket: Ticket, resources: dict[str, Any], on_event: Callable[[Event], None]) -> str:
        """Have a run made, and return the name of its folder."""
        ident, errors = ticket.ident, self._ray.exceptions
        with self._lock:
            if self._stopped:
                raise Stopped
            self._listeners[ident] = on_event
            task = self._ray.remote(_attempt).options(max_retries=RETRIES, name=ticket.recipe.algorithm, **resources)
            self._tasks[ident] = reference = task.remote(ticket.model_dump_json(), self._post)
        try:
            self._cluster.wait_for(reference, resources)
            return str(self._ray.get(reference))
        except errors.RayError as error:
            if self._stopped:
                raise Stopped from error
            if isinstance(error, errors.OutOfMemoryError):
                raise _NoMemoryError(_explain_shortage(error)) from error
            raise FtbenchError(_explain(error, isinstance(error, errors.RayTaskError))) from error
        finally:
            with self._lock:
                del self._listeners[ident], self._tasks[ident]

    def _resources(self, order: Order) -> dict[str, Any]:
        """Return what a run asks Ray for.

        Raises:
            FtbenchError: no node has it.
        """
        nodes = self._cluster.nodes()
        asked = ask_for(order, nodes, self._jobs if self._is_limited else None)
        check_room(asked, nodes)
        return asked

    def _listen(self) -> None:
        """Hand on what runs tell, until the cluster is let go of."""
        with suppress(Exception):
            while True:
                for ident, line in self._ray.get(self._post.take.remote()):
                    if (ident, line) == _END:
                        return
                    event, listener = read_event(line), self._listeners.get(ident)
                    if event and listener:
                        with suppress(Exception):  # one run's view may be gone; the others go on
                            listener(event)


def _patiently(read: Callable[[], Run]) -> Run:
    """Read what a node has just published: a shared disk may show it late, and a store may be away for a moment."""
    until = time.monotonic() + _ARRIVES
    while True:
        try:
            return read()
        except FtbenchError:
            if time.monotonic() > until:
                raise
            time.sleep(1)


class Post:
    """A Ray actor beside the one that ordered, to which runs tell how far they are."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def put(self, ident: str, line: str) -> None:
        """Take an event of a launch."""
        self._told.put_nowait((ident, line))

    async def take(self) -> list[tuple[str, str]]:
        """Give all that was told since, as soon as there is something."""
        found = [await self._told.get()]
        while not self._told.empty():
            found.append(self._told.get_nowait())
        return found


def _attempt(text: str, post: Any) -> str:
    """Make the run of a ticket on a node: what Ray calls there."""
    ticket = Ticket.model_validate_json(text)
    put = post.put.options(num_returns=0)
    return attempt(ticket, lambda event: put.remote(ticket.ident, write_event(event)))


def _start(address: str | None) -> Any:
    """Connect to a cluster, or start Ray here, for this process and on the loopback interface alone.

    Raises:
        UsageError: Ray is not installed.
        FtbenchError: there is no cluster at this address, or Ray cannot be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else what needs too much memory is tried for ever
    if address is None or address.rpartition(":")[0] in ("127.0.0.1", "localhost", "::1"):
        # Else Ray takes another interface for loopback, and listens on all. The name tells where this is the default.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # else all else on the machine goes before what is measured
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UsageError('--launcher ray needs Ray, which is not installed; pip install "ftbench[ray]"') from error
    if address:
        _knock(address)
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    heard = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own)
        )
    except (OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        where = f"no Ray cluster at {address}" if address else "Ray cannot be started"
        raise FtbenchError(f"{where}: {text}") from error
    finally:
        signal.signal(signal.SIGTERM, heard)  # Ray puts its own there
    return ray


def _knock(address: str) -> None:
    """See that somebody listens at a cluster's address: where nobody does, Ray itself goes on trying for minutes.

    Raises:
        FtbenchError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # a name that Ray may know, such as `auto`
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise FtbenchError(
            f"no Ray cluster at {address}: {error}; start one there (`ray start --head`), or see what the address of "
            "yours is (`ray status` on its head)"
        ) from error


class _NoMemoryError(FtbenchError):
    """A run's node had no memory left."""


def _explain_shortage(error: Exception) -> str:
    """Say in a line that Ray ended a run because its node's memory ran out; Ray says so in a page."""
    text = " ".join(str(error).split()).partition("OOM kill reason")[0].strip()
    return (
        "memory ran out on its node, and Ray ended it there, as often as it was tried; say how much it may take "
        f"(--memory-budget), or make fewer runs at once (--jobs): {text[:300]}"
    )


def _explain(error: Exception, is_raised: bool) -> str:
    """Say in a line why a task came to nothing: it raised an error, or was lost as often as it may be."""
    cause = getattr(error, "cause", None)
    if is_raised and isinstance(cause, FtbenchError):
        return str(cause)
    text = " ".join(str(cause or error).split())[:300]
    if is_raised:
        return f"{type(cause or error).__name__} on its node: {text}"
    return f"lost {RETRIES + 1} times with its node or its process there: {text}"
