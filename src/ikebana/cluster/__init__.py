"""The same work on an existing Ray cluster. The only package that imports ray."""
