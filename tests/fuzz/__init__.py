"""Every decoder on hostile input: only the documented errors come out, and memory stays bounded."""
