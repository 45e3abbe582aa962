"""Real workers and sweepers that are killed, stopped and skewed at random, over a database that dies under them.

`python -m chaos --seconds 60 --seed 7`; the same seed draws the same blows, though never at the very same instants.
"""
