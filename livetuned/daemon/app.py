"""The only place that builds the parts and joins them: store, engine, hub, sessions, ports, servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from livetuned.daemon.config import Config
from livetuned.daemon.lifecycle import ExitCode, Stop, quieten
from livetuned.daemon.paths import DATABASE
from livetuned.domain.errors import DomainError
from livetuned.service.changes import Changes
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.ports import Ports
from livetuned.service.rates import Rates
from livetuned.service.retention import Policy, Retention
from livetuned.service.sessions import Sessions
from livetuned.store.interface import Store, StoreDamagedError, StoreError, StoreLockedError, StoreOpenError
from livetuned.store.sqlite import SqliteStore
from livetuned.transport.addresses import AddressError
from livetuned.transport.classic import ClassicProtocol
from livetuned.transport.control import Count, Service
from livetuned.transport.http import HttpServer, Page, text
from livetuned.transport.server import Servers
from livetuned.transport.stalls import Stalls
from livetuned.transport.watching import Events

log = logging.getLogger("livetuned")

GRACE_SECONDS = 0.5
"""How long calls under way may take to end when the daemon stops, in seconds; sessions and watches are cut after it."""


async def run(config: Config, ready: Callable[[str], None]) -> ExitCode:
    """Runs the daemon until it is told to stop.

    Args:
        config: What it was told.
        ready: Called once with one line, when everything is recovered and served.

    Returns:
        Why it ended.
    """
    quieten(asyncio.get_running_loop())
    gc.disable()  # recovery makes a million objects, and no garbage: a third of its time would go into looking for some
    try:
        store = _open_store(config)
    except StoreLockedError as error:
        return _ended(ExitCode.STORE_LOCKED, error, "stop it, or choose another --state")
    except StoreOpenError as error:
        return _ended(ExitCode.STORE_UNUSABLE, error, "nothing was changed; choose another --state or mend the cause")
    except StoreDamagedError as error:
        return _ended(ExitCode.STORE_UNUSABLE, error, _damaged(config))
    try:
        return await _serve(config, store, ready)
    finally:
        await store.close()


def _open_store(config: Config) -> Store:
    try:
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreOpenError(f"state folder {config.state} can't be made: {error.strerror}") from error
    return SqliteStore(config.state / DATABASE, fsync=config.fsync)


def _damaged(config: Config) -> str:
    return (
        f"nothing was changed; `livetuned doctor {config.state / DATABASE}` tells what is damaged, and saves what is "
        "well; `livetuned restore` puts a backup in its place"
    )


def _ended(code: ExitCode, error: BaseException, advice: str = "") -> ExitCode:
    log.critical("%s%s", error, f" ({advice})" if advice else "")
    return code


class _Parts:
    """All parts of one daemon, joined."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config
        self.metrics = Metrics(version("livetuned"))
        self.hub = Hub(store)
        self.engine = Engine(store, self.hub, self.metrics)
        # Ports and servers need each other: a port is served by the servers, whose methods register jobs with ports.
        self.sessions = Sessions(self.engine, Ports(*config.job_ports, self._serve_job), self.metrics)
        rates = Rates(config.limits.changes_per_second, config.limits.changes_burst)
        changes = Changes(self.engine, self.sessions, self.metrics, rates)
        self.stalls = Stalls()
        self.classic = ClassicProtocol(changes, config.classic.port_offset) if config.classic.enabled else None
        self.servers = Servers(
            Service(
                self.engine,
                self.hub,
                self.sessions,
                self.metrics,
                changes,
                Events(),
                Count(),
                self.stalls,
                self.classic,
            )
        )
        policy = Policy(
            config.retention.records,
            config.retention.days * 86_400,
            config.retention.ended_days * 86_400,
            config.retention.lost_hours * 3_600,
        )
        self.retention = Retention(self.engine, store, self.sessions, policy)
        self.http = HttpServer({"/metrics": self._scrape, "/healthz": lambda: text(200, "ok")})
        self._background: list[asyncio.Task[None]] = []

    async def _serve_job(self, port: int, job: str) -> Callable[[], Awaitable[None]]:
        stop_grpc = await self.servers.listen_job(port, job)
        if self.classic is None:
            return stop_grpc
        stop_classic = await self.classic.listen(port, job)

        async def stop_both() -> None:
            await stop_classic()
            await stop_grpc()

        return stop_both

    def _scrape(self) -> Page:
        self.sessions.count_jobs()
        self.metrics.watchers.set(self.hub.watchers)
        return Page(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self.metrics.registry))

    async def start(self) -> str:
        """Recovers the state, serves everything, and returns what to say then.

        Raises:
            StoreDamagedError: The store can't be read.
            AddressError: An address can't be had.
            DomainError: A job's port can't be had.
        """
        engine, config = self.engine, self._config
        if self.classic is not None:
            log.warning(
                "the classic protocol is on, at job port %+d: it has no authentication, every user of this machine can "
                "change every job",
                config.classic.port_offset,
            )
        await engine.start()
        await self.sessions.recover()
        await self.retention.start()
        for work in (self.stalls.run(), self.retention.run(), self.hub.run()):
            self._background.append(asyncio.create_task(work))
        # What was recovered lives as long as the daemon: the collector need not look at it again and again. Streams
        # make many objects that live long enough to be looked at, and no garbage in cycles.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        gc.enable()
        addresses = await self.servers.listen(list(config.listen))
        scrape_address = await self.http.listen(config.metrics)
        return (
            f"livetuned ready: grpc {', '.join(map(str, addresses))}; metrics http://{scrape_address}/metrics; "
            f"state {config.state}; jobs {len(engine.jobs())}; revision {engine.revision}"
        )

    async def stop(self) -> None:
        """Stops serving, lets the engine finish what it has, and notes what is noted at the end."""
        await self.http.stop()
        if self.classic is not None:
            await self.classic.stop()
        await self.servers.stop(GRACE_SECONDS)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.engine.stop()
        if self._background and not self.engine.failed.done():
            with contextlib.suppress(StoreError):  # a full disk must not keep the daemon from stopping
                await self.retention.note()


async def _serve(config: Config, store: Store, ready: Callable[[str], None]) -> ExitCode:
    parts = _Parts(config, store)
    stop = Stop(parts.engine.failed)  # before anybody is told that we are ready
    try:
        ready(await parts.start())
        failure = await stop.wait()
        if failure is not None:
            return _ended(ExitCode.STORE_FAILED, failure, "start the daemon again: it verifies what is on disk")
        log.info("stopping")
    except StoreDamagedError as error:
        return _ended(ExitCode.STORE_UNUSABLE, error, _damaged(config))
    except (AddressError, DomainError) as error:
        return _ended(ExitCode.ADDRESS, error)
    finally:
        await parts.stop()
    log.info("stopped at revision %d", parts.engine.revision)
    return ExitCode.OK
