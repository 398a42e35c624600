"""Where models come from: built in, a folder, or the hub."""
