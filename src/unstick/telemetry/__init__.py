"""Listeners to the pipeline's events: the log, metrics, alerts."""
