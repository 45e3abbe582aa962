"""What the environment tells the demo platform's processes."""

URL_VARIABLE = "PLATFORM_DATABASE_URL"
BACKGROUND_TASKS_VARIABLE = "PLATFORM_BACKGROUND_TASKS"
"""Set to 1, it has the platform run its jobs in background tasks, as before it had the kit."""
