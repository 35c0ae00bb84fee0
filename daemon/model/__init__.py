"""The nouns of the daemon: intents, limits, answers, usage, sessions, calls, reports, feedback.

Values are frozen; the two things that live, Session and ToolCall, are in the ledger. None means unknown, undeclared or
unlimited as the field says; it is never 0. Times are Unix nanoseconds (`_at_ns`), durations milliseconds (`_ms`).
"""

from agentcgroup.daemon.model.host import (
    Capability as Capability,
    Drain as Drain,
    HostStatus as HostStatus,
    SchedulerStatus as SchedulerStatus,
    SessionLimits as SessionLimits,
    Tier as Tier,
)
from agentcgroup.daemon.model.intents import (
    NO_LABELS as NO_LABELS,
    Answer as Answer,
    Budget as Budget,
    BudgetRequest as BudgetRequest,
    CallLimits as CallLimits,
    Intent as Intent,
    Labels as Labels,
    QueueOutcome as QueueOutcome,
    QueuePlace as QueuePlace,
    Suggestion as Suggestion,
    Trim as Trim,
)
from agentcgroup.daemon.model.live import (
    DoorHold as DoorHold,
    FreezeCause as FreezeCause,
    KillReason as KillReason,
    Knock as Knock,
    Placement as Placement,
    ProcessRef as ProcessRef,
    Session as Session,
    ToolCall as ToolCall,
)
from agentcgroup.daemon.model.measures import (
    AgentActivity as AgentActivity,
    ExitStatus as ExitStatus,
    Growth as Growth,
    GuardFigures as GuardFigures,
    HostMemory as HostMemory,
    MemoryBreach as MemoryBreach,
    MemoryGuard as MemoryGuard,
    OomCounters as OomCounters,
    OomVictim as OomVictim,
    Refusals as Refusals,
    SessionMemory as SessionMemory,
)
from agentcgroup.daemon.model.reports import (
    CallMemory as CallMemory,
    Event as Event,
    Feedback as Feedback,
    HistoryEntry as HistoryEntry,
    Inputs as Inputs,
    Ladder as Ladder,
    Report as Report,
    Story as Story,
    event_id as event_id,
)
from agentcgroup.proto.transparent import TransparentRule as TransparentRule
from agentcgroup.proto.usage import Usage as Usage
from agentcgroup.proto.words import (
    Action as Action,
    Actor as Actor,
    CallState as CallState,
    CpuClass as CpuClass,
    Decision as Decision,
    FeedbackKind as FeedbackKind,
    Level as Level,
    OnExceed as OnExceed,
    Priority as Priority,
    Reason as Reason,
    Rung as Rung,
    SchedulerState as SchedulerState,
    SessionState as SessionState,
    TransparentScope as TransparentScope,
    Verdict as Verdict,
)
