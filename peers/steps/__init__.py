"""Steps of a session: messages over channels, sending rows on, and keeping their history."""
