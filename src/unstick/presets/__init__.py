"""Job systems that are SQL tables: one data file each, and what reads it."""
