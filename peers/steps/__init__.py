"""Steps of a session: messages over channels, rows sent on, and their history."""
