"""The only place that builds the parts and joins them: store, engine, hub, sessions, ports, servers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib.metadata import version

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from livetuned.daemon.config import Config
from livetuned.daemon.lifecycle import ExitCode, Stop
from livetuned.domain import limits
from livetuned.domain.errors import DomainError
from livetuned.service.changes import Changes
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.ports import Ports
from livetuned.service.rates import Rates
from livetuned.service.retention import Policy, Retention
from livetuned.service.sessions import Sessions
from livetuned.store.interface import Store, StoreDamagedError, StoreLockedError, StoreOpenError
from livetuned.store.sqlite import SqliteStore
from livetuned.transport.addresses import AddressError
from livetuned.transport.control import Count, Service
from livetuned.transport.http import HttpServer, Page, text
from livetuned.transport.server import Servers
from livetuned.transport.stalls import Stalls
from livetuned.transport.watching import Events

log = logging.getLogger("livetuned")

DATABASE = "livetuned.db"
"""Name of the store's file in the state folder."""

_DAMAGED = "nothing was changed; keep a copy of the file and restore a backup"

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
    try:
        store = _open_store(config)
    except StoreLockedError as error:
        return _ended(ExitCode.STORE_LOCKED, error, "stop it, or choose another --state")
    except StoreOpenError as error:
        return _ended(ExitCode.STORE_UNUSABLE, error, "nothing was changed; choose another --state or mend the cause")
    except StoreDamagedError as error:
        return _ended(
            ExitCode.STORE_UNUSABLE,
            error,
            _DAMAGED,
        )
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


def _ended(code: ExitCode, error: BaseException, advice: str = "") -> ExitCode:
    log.critical("%s%s", error, f" ({advice})" if advice else "")
    return code


async def _serve(config: Config, store: Store, ready: Callable[[str], None]) -> ExitCode:
    metrics = Metrics(version("livetuned"))
    hub = Hub(store)
    engine = Engine(store, hub, metrics)
    # Ports and servers need each other: a port is served by the servers, whose methods register jobs with ports.
    ports = Ports(*config.job_ports, lambda port, job: servers.listen_job(port, job))  # noqa: PLW0108 - `servers` is made below
    sessions = Sessions(engine, ports, metrics)
    changes = Changes(engine, sessions, metrics, Rates(limits.CHANGES_PER_SECOND, limits.CHANGES_BURST))
    stalls = Stalls()
    servers = Servers(Service(engine, hub, sessions, metrics, changes, Events(), Count(), stalls))
    retention = Retention(engine, store, sessions, Policy(2_000_000, 90 * 86_400, 30 * 86_400, 168 * 3_600))
    background: list[asyncio.Task[None]] = []

    def scrape() -> Page:
        sessions.count_jobs()
        metrics.watchers.set(hub.watchers)
        return Page(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(metrics.registry))

    http = HttpServer({"/metrics": scrape, "/healthz": lambda: text(200, "ok")})
    stop = Stop(engine.failed)  # before anybody is told that we are ready
    try:
        await engine.start()
        await sessions.recover()
        await retention.start()
        background += [asyncio.create_task(work) for work in (stalls.run(), retention.run(), hub.run())]
        addresses = await servers.listen(list(config.listen))
        scrape_address = await http.listen(config.metrics)
        ready(
            f"livetuned ready: grpc {', '.join(map(str, addresses))}; metrics http://{scrape_address}/metrics; "
            f"state {config.state}; jobs {len(engine.jobs())}; revision {engine.revision}"
        )
        failure = await stop.wait()
        if failure is not None:
            return _ended(ExitCode.STORE_FAILED, failure, "start the daemon again: it verifies what is on disk")
        log.info("stopping")
    except StoreDamagedError as error:
        return _ended(
            ExitCode.STORE_UNUSABLE,
            error,
            _DAMAGED,
        )
    except (AddressError, DomainError) as error:
        return _ended(ExitCode.ADDRESS, error)
    finally:
        await http.stop()
        await servers.stop(GRACE_SECONDS)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await engine.stop()
    log.info("stopped at revision %d", engine.revision)
    return ExitCode.OK
