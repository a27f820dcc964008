"""A W&B sweep spec, its trials, and their execution: here, under W&B's agents, and later sent to it."""
