"""Networks: backbones, heads, pretrained weights, layer table."""
