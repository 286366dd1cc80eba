"""A model file over HTTP: REST and a web page."""
