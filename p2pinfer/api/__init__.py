"""The swarm over HTTP: OpenAI's interface, the web page, and what they show of the swarm."""
