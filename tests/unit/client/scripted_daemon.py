"""A gRPC server that answers as a test says: the real transport, the real messages, no daemon behind it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_status import rpc_status

from agentcgroup.proto.v1 import agent_pb2, operator_pb2

# What a method answers: a message, several (a stream), a failure, or what a function makes of the request.
Answer: TypeAlias = (
    Message | Sequence[Message] | status_pb2.Status | grpc.StatusCode | Callable[[Any], Message]
)

AGENT_SERVICE: ServiceDescriptor = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
OPERATOR_SERVICE: ServiceDescriptor = operator_pb2.DESCRIPTOR.services_by_name["OperatorService"]


class ScriptedDaemon:
    """Serves `service` at `socket`. `answers` is by method name; a method without one is UNIMPLEMENTED."""

    def __init__(self, socket: Path, service: ServiceDescriptor) -> None:
        self.socket = socket
        self.answers: dict[str, Answer] = {}
        self.heard: list[tuple[str, Any]] = []
        self.cancelled = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8))
        handlers = {method.name: self._handler(method) for method in service.methods}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )
        self._server.add_insecure_port(f"unix:{socket}")

    def _handler(self, method: MethodDescriptor) -> Any:
        request_class = GetMessageClass(method.input_type)

        def unary(request: Message, context: Any) -> Message:
            self.heard.append((method.name, request))
            answer = self.answers.get(method.name, grpc.StatusCode.UNIMPLEMENTED)
            self._fail_when_told(answer, context)
            said = answer(request) if callable(answer) else answer
            assert isinstance(said, Message)
            return said

        def stream(request: Message, context: Any) -> Iterator[Message]:
            self.heard.append((method.name, request))
            answer = self.answers.get(method.name, grpc.StatusCode.UNIMPLEMENTED)
            self._fail_when_told(answer, context)
            context.add_callback(self.cancelled.set)
            assert isinstance(answer, Sequence)
            yield from answer

        make = (
            grpc.unary_stream_rpc_method_handler
            if method.server_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(
            stream if method.server_streaming else unary,
            request_deserializer=request_class.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    @staticmethod
    def _fail_when_told(answer: Answer, context: Any) -> None:
        if isinstance(answer, status_pb2.Status):
            context.abort_with_status(rpc_status.to_status(answer))
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "as told")

    def requests(self, method: str) -> list[Any]:
        """What was asked of `method`, in order."""
        return [request for name, request in self.heard if name == method]

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.stop(None).wait(10)
