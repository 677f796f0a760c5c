"""Files in the safetensors format: found, described, read by byte ranges, and written."""
