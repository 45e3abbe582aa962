"""Job systems behind a broker: one package and one extra each."""
