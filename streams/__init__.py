"""What is computed: the runtime, the sketches and one folder a domain."""
