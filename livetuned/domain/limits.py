"""Every limit of the daemon, named, with its unit. The only place that knows the numbers."""

from __future__ import annotations

JOB_NAME_BYTES = 63
"""Longest job name, in bytes: the length of a DNS label."""

NAME_BYTES = 200
"""Longest name of a variable or trigger, in bytes of UTF-8."""

STRING_VALUE_BYTES = 64 * 1024
"""Longest value of a string variable, in bytes of UTF-8."""

TEXT_BYTES = 4 * 1024
"""Longest free text a caller may attach (reason, doc, unit, refusal, end message), in bytes of UTF-8."""

CHOICES = 1_000
"""Most choices of one string variable, a count."""

NAMES_PER_JOB = 1_000
"""Most variables and triggers of one job together, a count."""

ASSIGNMENTS_PER_CHANGE = 1_000
"""Most assignments, or firings, in one change, a count."""

JOBS = 1_000
"""Most jobs that have not ended, a count."""

ENDED_JOBS = 10_000
"""Most jobs that have ended and are still readable, a count; the one that ended first is forgotten first."""

RANKS_PER_JOB = 100_000
"""Highest world size of one job, a count."""

PENDING_FIRINGS = 1_000
"""Most firings of one trigger that its program has not consumed yet, a count."""

USED_VALUES = 64
"""Most numbers of what a step used that an acknowledgement carries, a count: one for each parameter group."""

SCHEDULED = 100
"""Most changes of one job that wait for their step, a count; as many that do not any more are remembered."""

REQUEST_IDS_PER_JOB = 1_000
"""How many of the newest request ids are remembered per job, a count."""

REQUEST_ID_BYTES = 200
"""Longest request id or instance id, in bytes of UTF-8."""

WATCHERS = 10_000
"""Most watch streams at once, a count."""

CHANGE_STREAMS = 1_000
"""Most streams of changes (`StreamChanges`) at once, a count."""

CHANGES_IN_FLIGHT = 1_024
"""Most changes of one stream that wait for their answer, a count; the stream is not read on until one is answered."""

SESSIONS = 20_000
"""Most open sessions of training processes, a count."""

CHANGES_PER_SECOND = 1_000
"""Most changes a second of one caller in the long run, by default, in 1/s."""

CHANGES_BURST = 10_000
"""Most changes of one caller at once after a rest, by default, a count."""

CALLERS = 10_000
"""How many callers are told apart by their rate, a count; the one silent longest is forgotten first."""

WATCH_STALL_SECONDS = 30.0
"""How long one message may wait for a watcher that does not read, in seconds; then its watch is closed."""

BOOKMARK_SECONDS = 10.0
"""How often a watch in whose scope nothing happens is told how far it has come, in seconds."""

PORT_QUARANTINE_SECONDS = 60.0
"""How long a port that a job released is not given to another, in seconds."""

HISTORY_SCAN = 20_000
"""Most changes that one call looks at for a filtered page of the history, a count."""

SNAPSHOT_LAG = 20_000
"""How many of the newest records may be part of no snapshot, a count: what a start has to fold."""

MESSAGE_BYTES = 256 * 1024
"""Largest gRPC message the daemon accepts, in bytes."""

METADATA_BYTES = 8 * 1024
"""Most gRPC metadata the daemon accepts with one call, in bytes."""

HISTORY_PAGE = 1_000
"""Most changes in one page of the history, a count."""

BATCH = 512
"""Most changes in one commit, a count."""

QUEUE = 10_000
"""Most requests that wait for the writer, a count; one more is refused."""

HUB_RECORDS = 8_192
"""How many of the newest records are kept in memory for watchers, a count; older ones are read from the store."""

POINTS_PER_SERIES = 1_000
"""Most points kept of one series of a job's metrics, a count, 24 bytes each; a longer course is thinned."""

SERIES_PER_RANK = 200
"""Most names under which one rank of a job may log, a count; what comes under further ones is dropped."""

SERIES_PER_JOB = 1_000
"""Most series of one job, a count; each rank that logs under a name has one."""

SERIES = 5_000
"""Most series of all jobs, a count: 120 MB. The job that is not connected for longest makes room."""

SAMPLES_PER_SECOND = 400
"""Most samples a second of one session in the long run, in 1/s; further ones are dropped."""

SAMPLES_BURST = 1_000
"""Most samples of one session at once after a rest, a count."""

SERIES_ON_PAGE = 1_000
"""Most series of jobs on the page of metrics, a count; how many are left out is on the page."""

POINTS_IN_ANSWER = 100_000
"""Most points in one answer of GetMetrics, a count, 24 bytes each: less than the 4 MiB that a gRPC client accepts."""

HTTP_HEADER_BYTES = 16 * 1024
"""Largest request head the metrics endpoint accepts, in bytes."""

HTTP_CONNECTIONS = 512
"""Most connections to the metrics endpoint at once, a count."""

CLASSIC_CONNECTION_BYTES = STRING_VALUE_BYTES + 4 * 1024
"""Most bytes that a client of the classic protocol may send on one connection, in bytes."""

CLASSIC_CONNECTIONS_PER_JOB = 64
"""Most connections to the classic ports of one job at once, a count."""

CLASSIC_CONNECTIONS = 256
"""Most connections to the classic ports of all jobs at once, a count."""

CLASSIC_VARIABLE_PORTS = 512
"""Most ports of variables and triggers that the classic protocol opens for all jobs, a count; each is a descriptor."""

CLASSIC_LOG_LINES = 100
"""Most lines a minute that clients of the classic protocol may cause in the log, a count, for each of two sorts."""
