"""Every device fine-tunes alone: what federation has to beat."""
