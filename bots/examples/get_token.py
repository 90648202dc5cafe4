"""Prints a user's access token, or the link by which the user allows it.

One command from the repository's root generates the client from the contract (OUT: any folder):

    python -m grpc_tools.protoc -I proto --python_out=OUT --grpc_python_out=OUT \\
        tokenbroker/v1/token_broker.proto

    PYTHONPATH=OUT TOKEN_BROKER_ADDRESS=127.0.0.1:50051 TOKEN_BROKER_API_KEY=tbk_… \\
        python bots/examples/get_token.py demo demo/you

Needs grpcio and grpcio-status to run, and grpcio-tools to generate.
"""

import os
import sys

import grpc
from grpc_status import rpc_status
from tokenbroker.v1 import token_broker_pb2 as pb
from tokenbroker.v1.token_broker_pb2_grpc import TokenBrokerServiceStub

provider, subject = sys.argv[1:]
credential = ("authorization", f"Bearer {os.environ['TOKEN_BROKER_API_KEY']}")
request = pb.GetTokenRequest(
    key=pb.GrantKey(provider=provider, subject=subject),
    # Where the user has to authorize first, the error then brings the link along.
    start_authorization=pb.AuthorizationOptions(),
)
with grpc.insecure_channel(os.environ["TOKEN_BROKER_ADDRESS"]) as channel:
    try:
        answer = TokenBrokerServiceStub(channel).GetToken(request, timeout=10, metadata=[credential])
        print(answer.token.access_token)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)  # None where the error is not the broker's
        link = pb.AuthorizeResponse()
        if not any(detail.Unpack(link) for detail in (status.details if status else [])):
            sys.exit(f"{error.code().name}: {error.details()}")
        print("Open", link.authorization_url)
