"""The HTTP API: a router to include in a host's FastAPI app, and a factory for the service."""
