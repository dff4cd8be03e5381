"""The roles: controller, learner, driver. The only library code with threads; they perform what
``coordination`` decides.
"""
