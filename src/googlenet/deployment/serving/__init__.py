"""Trained networks behind HTTP: what is asked, how it is bounded, joined to batches and answered.

`app` builds the application of a `service`; `server` runs it on a socket. A request goes through `gate` (key, bytes,
time, room), `requests` (its body), `decoding`, `batching`, and an `Engine`.
"""
