#!/bin/sh
# Generates sdk/livetune/v1 from proto/livetune/v1 into the folder named ($1, by default sdk), with the tools of
# proto/tools.txt on PATH. `make proto` runs it; the freshness test runs it into an empty folder and compares.
set -eu
cd "$(dirname "$0")/.."
out=${1:-sdk}
mkdir -p "$out"
python -m grpc_tools.protoc -Iproto \
    --python_out="$out" --mypy_out=quiet:"$out" \
    proto/livetune/v1/types.proto proto/livetune/v1/errors.proto \
    proto/livetune/v1/control.proto proto/livetune/v1/job.proto
python -m grpc_tools.protoc -Iproto \
    --grpc_python_out="$out" --mypy_grpc_out=quiet:"$out" \
    proto/livetune/v1/control.proto proto/livetune/v1/job.proto
