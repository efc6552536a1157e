"""What flows: records, topic specs and codecs. Pure; imports no Kafka client."""
