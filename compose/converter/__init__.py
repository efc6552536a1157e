"""The converter: does what a coordinator asks with ffmpeg, in processes of its own or behind HTTP. It knows no Kafka."""
