"""Pure decisions: who is there, who is chosen, when a round commits, when a job ends.

No clock, thread, socket, environment or log. Time comes in as a number; what shall be done comes out as
actions, which ``roles/controller/job`` performs.
"""
