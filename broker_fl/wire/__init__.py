"""The wire: frames, message kinds, events, job settings, chunks and encodings. Normative text:
``schemas/README.md``.
"""
