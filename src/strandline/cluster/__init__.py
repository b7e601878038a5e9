"""Who is there, who leads, what runs where: opaque work spread over nodes, fenced."""
