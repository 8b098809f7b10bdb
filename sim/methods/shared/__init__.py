"""What several methods have in common: settings, the side of a device, what is charged, what the server keeps."""
