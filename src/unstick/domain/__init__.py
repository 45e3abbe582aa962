"""Pure values and decisions: no clock, no I/O, no logging, the standard library only."""
