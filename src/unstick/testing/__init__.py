"""For people who write a source: an in-memory one to test against, and the behaviour every source must show."""
