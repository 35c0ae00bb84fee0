"""Everything on the agent's side of the socket: SDK, CLI, native launcher.

    from agentcgroup.client import Client

    with Client() as client, client.call(memory="2G", timeout="10m") as call:
        call.run(["pytest", "-q"])
    print(call.report.verdict, call.report.message)

Client and AsyncClient speak for an agent on its session's socket, OperatorClient and AsyncOperatorClient for the host's
operator. All raise ClientError and its kinds; a refused intent is an Answer, except where nothing else can follow from it
(`Refused`, raised by `call`).
"""

from agentcgroup.client.agent_client import AsyncClient, Client
from agentcgroup.client.call_scope import AsyncCallScope, CallScope
from agentcgroup.client.errors import (
    AlreadyExists,
    ClientError,
    DaemonError,
    Denied,
    Exhausted,
    HostError,
    IncompatibleDaemon,
    InvalidRequest,
    NotFound,
    Refused,
    TimedOut,
    Unreachable,
    WrongState,
)
from agentcgroup.client.operator_client import AsyncOperatorClient, OperatorClient
from agentcgroup.client.values import (
    Answer,
    Budget,
    Call,
    CallState,
    Capability,
    CpuClass,
    Decision,
    Event,
    Feedback,
    FeedbackKind,
    HistoryEntry,
    Host,
    Intent,
    Ladder,
    Level,
    Limits,
    MemorySample,
    OnExceed,
    Priority,
    ProcessRef,
    Queue,
    Reason,
    Report,
    Rung,
    Session,
    SessionLimits,
    SessionState,
    Story,
    Suggestion,
    Trim,
    Usage,
    Verdict,
)

__all__ = [
    "AlreadyExists",
    "Answer",
    "AsyncCallScope",
    "AsyncClient",
    "AsyncOperatorClient",
    "Budget",
    "Call",
    "CallScope",
    "CallState",
    "Capability",
    "Client",
    "ClientError",
    "CpuClass",
    "DaemonError",
    "Decision",
    "Denied",
    "Event",
    "Exhausted",
    "Feedback",
    "FeedbackKind",
    "HistoryEntry",
    "Host",
    "HostError",
    "IncompatibleDaemon",
    "Intent",
    "InvalidRequest",
    "Ladder",
    "Level",
    "Limits",
    "MemorySample",
    "NotFound",
    "OnExceed",
    "OperatorClient",
    "Priority",
    "ProcessRef",
    "Queue",
    "Reason",
    "Refused",
    "Report",
    "Rung",
    "Session",
    "SessionLimits",
    "SessionState",
    "Story",
    "Suggestion",
    "TimedOut",
    "Trim",
    "Unreachable",
    "Usage",
    "Verdict",
    "WrongState",
]
