"""Readers: files of other formats become Programs."""
