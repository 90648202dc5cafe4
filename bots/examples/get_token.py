"""Prints a user's access token, or the link by which the user allows it. With the demo, after one command
that generates the client from the contract (OUT: a folder that is there):

    pip install grpcio grpcio-status grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=OUT --grpc_python_out=OUT \\
        tokenbroker/v1/token_broker.proto

    PYTHONPATH=OUT TOKEN_BROKER_ADDRESS=127.0.0.1:50051 TOKEN_BROKER_API_KEY=tbk_… \\
        python bots/examples/get_token.py demo demo/you
"""

import os
import sys

import grpc
from grpc_status import rpc_status
from tokenbroker.v1 import token_broker_pb2 as pb
from tokenbroker.v1.token_broker_pb2_grpc import TokenBrokerServiceStub

if len(sys.argv) != 3:
    sys.exit("name a provider and a subject")
credential = ("authorization", f"Bearer {os.environ['TOKEN_BROKER_API_KEY']}")


def token_or_link(broker, provider, subject):
    """The token, or what to tell the user."""
    request = pb.GetTokenRequest(
        key=pb.GrantKey(provider=provider, subject=subject),
        # Where the user has to authorize first, the error then brings the link along.
        start_authorization=pb.AuthorizationOptions(),
    )
    try:
        return broker.GetToken(request, timeout=30, metadata=[credential]).token.access_token
    except grpc.RpcError as error:
        started = pb.AuthorizeResponse()
        status = rpc_status.from_call(error)
        if not any(detail.Unpack(started) for detail in (status.details if status else [])):
            raise
        return f"Open {started.authorization_url}"


# Plaintext, as on loopback: across a network, the API key needs grpc.secure_channel.
with grpc.insecure_channel(os.environ["TOKEN_BROKER_ADDRESS"]) as channel:
    try:
        print(token_or_link(TokenBrokerServiceStub(channel), *sys.argv[1:]))
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
