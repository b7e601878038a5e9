"""What strandline's own tests and its users' tests are built with. Public, imported on request."""
