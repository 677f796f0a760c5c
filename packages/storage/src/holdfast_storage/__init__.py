"""Storage backends, commit protocol and conformance kit of holdfast."""
