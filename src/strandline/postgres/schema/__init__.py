"""The migrations, as .sql files, and current.sql: a dump of what they make."""
