"""HTTP server for trained networks.

A request passes `middleware` (API key, limits, timeout), `schemas` (body parsing), `images` (decoding), `batching` and
a predictor of `repository`. `app` builds the ASGI application; `server` runs it on a socket with uvicorn.
"""
