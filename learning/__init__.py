"""What is computed: backbones, side networks, activations, data, costs. Knows no clock."""
