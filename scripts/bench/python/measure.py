"""Timing and memory of this process."""

import resource
import statistics
import sys
import time


def peak_rss():
    """Largest resident set of this process in bytes. (On Linux ru_maxrss survives exec, so it may be the parent's.)"""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def timed(step, warmup, steps):
    """Wall and processor seconds per call of `step`: the medians, and all wall times."""
    for _ in range(warmup):
        step()
    seconds, cpu = [], []
    for _ in range(steps):
        start, used = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return {"seconds": statistics.median(seconds), "cpu": statistics.median(cpu), "all": seconds}
