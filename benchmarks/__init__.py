"""How fast Unstick finds and recovers stuck jobs, against what a database can do at best.

Run with `python -m benchmarks`; every ratio is taken within one run, its contenders taking turns.
"""
