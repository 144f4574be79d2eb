#!/bin/sh
# Generates sdk/livetune/v1 from proto/livetune/v1, with the tools of proto/tools.txt on PATH.
# With --check it generates elsewhere, compares, and fails if what is committed is stale.
set -eu
cd "$(dirname "$0")/.."

generate() {
    python -m grpc_tools.protoc -Iproto --python_out="$1" --mypy_out=quiet:"$1" \
        proto/livetune/v1/types.proto proto/livetune/v1/errors.proto \
        proto/livetune/v1/control.proto proto/livetune/v1/job.proto proto/livetune/v1/admin.proto
    python -m grpc_tools.protoc -Iproto --grpc_python_out="$1" --mypy_grpc_out=quiet:"$1" \
        proto/livetune/v1/control.proto proto/livetune/v1/job.proto proto/livetune/v1/admin.proto
}

if [ "${1:-}" != --check ]; then
    generate sdk
    exit
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"
cp sdk/livetune/v1/__init__.py "$fresh/livetune/v1/"
diff -r --exclude=__pycache__ "$fresh/livetune/v1" sdk/livetune/v1 || {
    echo "sdk/livetune/v1 is not what proto/ generates: run 'make proto' and commit the result" >&2
    exit 1
}
echo "generated code: fresh"
