"""Witnesses that are asked outside of the jobs' database: a process on this host, an endpoint, our own memory."""
