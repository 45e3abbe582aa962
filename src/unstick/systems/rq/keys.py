"""The names of RQ's keys."""

QUEUES = "rq:queues"
SUSPENDED = "rq:suspended"
_QUEUE = "rq:queue:"


def queue_name(key: str) -> str:
    """Return the name of a queue by its key, as `QUEUES` has it."""
    return key.removeprefix(_QUEUE)


def queue(name: str) -> str:
    """Name the list of jobs that wait."""
    return f"{_QUEUE}{name}"


def intermediate(queue: str) -> str:
    """Name the list of jobs that a worker took and hasn't begun."""
    return f"{_QUEUE}{queue}:intermediate"


def started(queue: str) -> str:
    """Name the set of executions, by when the lease of each runs out."""
    return f"rq:wip:{queue}"


def scheduled(queue: str) -> str:
    """Name the set of jobs that are scheduled, by when they are due."""
    return f"rq:scheduled:{queue}"


def deferred(queue: str) -> str:
    """Name the set of jobs that wait for others."""
    return f"rq:deferred:{queue}"


def finished(queue: str) -> str:
    """Name the set of jobs that succeeded, by when they are forgotten."""
    return f"rq:finished:{queue}"


def failed(queue: str) -> str:
    """Name the set of jobs that failed, by when they are forgotten."""
    return f"rq:failed:{queue}"


def scheduler(queue: str) -> str:
    """Name what the scheduler that serves a queue holds for as long as it lives."""
    return f"rq:scheduler-lock:{queue}"


def workers(queue: str) -> str:
    """Name the set of the keys of a queue's workers."""
    return f"rq:workers:{queue}"


def worker(name: str) -> str:
    """Name what a worker says of itself."""
    return f"rq:worker:{name}"


def worker_executions(name: str) -> str:
    """Name the set of what a worker is at."""
    return f"rq:worker:{name}:executions"


def job(job_id: str) -> str:
    """Name a job's fields."""
    return f"rq:job:{job_id}"


def dependents(job_id: str) -> str:
    """Name the set of jobs that wait for this one."""
    return f"rq:job:{job_id}:dependents"


def results(job_id: str) -> str:
    """Name the stream of what came of a job's attempts."""
    return f"rq:results:{job_id}"


def execution(job_id: str, execution_id: str) -> str:
    """Name what is known of one execution for as long as its worker beats."""
    return f"rq:execution:{job_id}:{execution_id}"
