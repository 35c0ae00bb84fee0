// How soon the thread gets the CPU when a launcher waits for it.
#ifndef AGENTCGROUP_DOOR_PRIORITY_H
#define AGENTCGROUP_DOOR_PRIORITY_H

// A launcher waits for two wake-ups, this thread's and its own. On a busy host the first one takes longer than all the
// work, so the thread goes before others when it has something to do, and the kernel sees to it that this is no more than
// a quarter of one CPU, whatever callers do (sched(7), SCHED_DEADLINE). Where that is not to be had it is a thread like
// any other.
void go_first(void);

#endif
