// Keeps pages live; everything works without it.
