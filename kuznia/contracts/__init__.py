"""Every file that people write and every value that steps exchange, as frozen models."""
