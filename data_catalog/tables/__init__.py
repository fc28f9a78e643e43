"""Tables: manifests, schemas, and the one way to build them."""
