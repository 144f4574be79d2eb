"""A daemon with a planted bug, for the control of the backup test: the jobs it sends are as of the end of the copying."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from livetune.v1 import admin_pb2
from livetuned.daemon.cli import main
from livetuned.store import codec
from livetuned.transport.admin import AdminService

_backup = AdminService.Backup


async def in_pieces(self: AdminService, request: Any, context: Any) -> AsyncIterator[admin_pb2.BackupResponse]:
    async for response in _backup(self, request, context):
        if response.WhichOneof("item") != "jobs":
            yield response
    revision = self._engine.revision
    while self._engine.revision == revision:  # noqa: ASYNC110 - the engine has no bell for this
        await asyncio.sleep(0.01)
    for job in self._engine.jobs():
        yield admin_pb2.BackupResponse(jobs=admin_pb2.BackupJobs(payloads=[codec.encode_job(job)]))


AdminService.Backup = in_pieces  # type: ignore[method-assign]
main(prog_name="livetuned")
