"""The runtime: one fenced transaction a flush and partition. Start with `partition`, then `worker` and `transport`."""
