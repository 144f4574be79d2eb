"""The only place that builds the parts and joins them: store, engine, hub, sessions, ports, servers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from livetuned.daemon.config import Config
from livetuned.daemon.lifecycle import ExitCode, Stop
from livetuned.domain.errors import DomainError
from livetuned.service.engine import Engine
from livetuned.service.hub import Hub
from livetuned.service.metrics import Metrics
from livetuned.service.ports import Ports
from livetuned.service.sessions import Sessions
from livetuned.store.interface import Store, StoreDamagedError, StoreLockedError, StoreOpenError
from livetuned.store.sqlite import SqliteStore
from livetuned.transport.addresses import AddressError
from livetuned.transport.classic import ClassicProtocol
from livetuned.transport.control import Service
from livetuned.transport.http import HttpServer, Page, text
from livetuned.transport.server import Servers

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
    async def serve_job(port: int, job: str) -> Callable[[], Awaitable[None]]:
        stop_grpc = await servers.listen_job(port, job)
        if classic is None:
            return stop_grpc
        stop_classic = await classic.listen(port, job)

        async def stop_both() -> None:
            await stop_classic()
            await stop_grpc()

        return stop_both

    ports = Ports(*config.job_ports, serve_job)
    sessions = Sessions(engine, ports, metrics)
    classic = ClassicProtocol(engine, sessions, metrics, config.classic.port_offset) if config.classic.enabled else None
    servers = Servers(Service(engine, hub, sessions, metrics, classic))

    def scrape() -> Page:
        sessions.count_jobs()
        metrics.watchers.set(hub.watchers)
        return Page(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(metrics.registry))

    http = HttpServer({"/metrics": scrape, "/healthz": lambda: text(200, "ok")})
    stop = Stop(engine.failed)  # before anybody is told that we are ready
    if classic is not None:
        log.warning(
            "the classic protocol is on, at job port %+d: it has no authentication, every user of this machine can "
            "change every job",
            config.classic.port_offset,
        )
    try:
        await engine.start()
        await sessions.recover()
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
        if classic is not None:
            await classic.stop()
        await servers.stop(GRACE_SECONDS)
        await engine.stop()
    log.info("stopped at revision %d", engine.revision)
    return ExitCode.OK
