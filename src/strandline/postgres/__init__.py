"""Everything that touches PostgreSQL or its drivers; nothing above imports a driver."""
