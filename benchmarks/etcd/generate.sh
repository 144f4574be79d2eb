#!/bin/sh
# Generates benchmarks/etcd/rpc_pb2* from rpc.proto, with the tools of proto/tools.txt on PATH:
#   PATH="$PWD/.venv-proto/bin:$PATH" benchmarks/etcd/generate.sh
set -eu
cd "$(dirname "$0")/.."

python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. etcd/rpc.proto
