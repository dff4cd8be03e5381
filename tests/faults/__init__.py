"""Real faults: a real federation, disturbed at each phase of a round."""
