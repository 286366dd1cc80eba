"""Features of frozen backbones: extraction, cache, probes."""
