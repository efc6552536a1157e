"""The gateway's side of AI tasks: taking them in, telling of them, and doing them itself while Kafka is away."""
