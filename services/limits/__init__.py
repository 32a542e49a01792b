"""The rate limit service of a laptop, beside envoyproxy/ratelimit, whose file it reads."""
