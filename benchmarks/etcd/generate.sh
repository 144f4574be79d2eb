#!/bin/sh
# Generates benchmarks/etcd/rpc_pb2*.py from rpc.proto, with the tools of proto/tools.txt on PATH.
# With --check it generates elsewhere, compares, and fails if what is committed is stale.
set -eu
cd "$(dirname "$0")/.."

generate() {
    python -m grpc_tools.protoc -I. --python_out="$1" --grpc_python_out="$1" etcd/rpc.proto
}

if [ "${1:-}" != --check ]; then
    generate .
    exit
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
generate "$fresh"
for file in rpc_pb2.py rpc_pb2_grpc.py; do
    cmp "$fresh/etcd/$file" "etcd/$file" || {
        echo "benchmarks/etcd is not what rpc.proto generates: run 'make proto' and commit the result" >&2
        exit 1
    }
done
