"""The web console: server-rendered pages over the use cases that the API calls, usable without JavaScript."""
