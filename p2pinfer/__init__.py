"""p2pinfer: a peer-to-peer swarm of ordinary machines that runs one quantised language model."""
