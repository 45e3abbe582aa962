"""For people who write a source or a witness: fakes to test against, and the behaviour that every one must show."""
