"""AdminService: what the admin of a daemon asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from livetune.v1 import admin_pb2, admin_pb2_grpc
from livetuned.service.engine import Engine
from livetuned.store import codec

_Context = grpc.aio.ServicerContext[Any, Any]

_PAGE = 50
"""How many records are read in one go, a count: changes that are made meanwhile wait for it."""
_MESSAGE_BYTES = 512 * 1024
"""About how large one message of a copy becomes, in bytes; a single record may be larger."""


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The service. Not on jobs' ports.

    Args:
        engine: Whose store is copied.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Backup(  # noqa: N802 - the name in the contract
        self, request: admin_pb2.BackupRequest, context: _Context
    ) -> AsyncIterator[admin_pb2.BackupResponse]:
        """Streams a copy of the store: the jobs as of one revision, and the records that are kept up to it."""
        engine = self._engine
        with engine.nothing_compacted():
            revision, jobs, position = engine.revision, engine.jobs(), engine.compacted
            begin = admin_pb2.BackupBegin(store_id=engine.store_id, revision=revision, compacted_revision=position)
            yield admin_pb2.BackupResponse(begin=begin)
            for job in jobs:
                payload = codec.encode_job(job)
                yield admin_pb2.BackupResponse(jobs=admin_pb2.BackupJobs(payloads=[payload]))
            while position < revision:
                page = await engine.read(position, min(_PAGE, revision - position))
                position = page[-1].revision
                records: list[admin_pb2.StoredRecord] = []
                size = 0
                for record in page:
                    stored = admin_pb2.StoredRecord(
                        revision=record.revision,
                        time_us=record.time_us,
                        job_id=record.job,
                        kind=codec.kind_of(record.payload),
                        payload=codec.encode(record.payload),
                    )
                    if size + len(stored.payload) > _MESSAGE_BYTES and records:
                        yield _message(records)
                        records, size = [], 0
                    records.append(stored)
                    size += len(stored.payload)
                yield _message(records)


def _message(records: list[admin_pb2.StoredRecord]) -> admin_pb2.BackupResponse:
    return admin_pb2.BackupResponse(records=admin_pb2.BackupRecords(records=records))
