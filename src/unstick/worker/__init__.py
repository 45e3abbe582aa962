"""The kit for the jobs' own process: signs of life, fenced ends, and a runner for handlers."""

from unstick.worker.heartbeat import Heartbeat, Heartbeats
from unstick.worker.identity import this_process
from unstick.worker.registry import Handler, Registry
from unstick.worker.runner import Runner
from unstick.worker.worker import Worker

__all__ = ["Handler", "Heartbeat", "Heartbeats", "Registry", "Runner", "Worker", "this_process"]
