"""What needs training, export and runtimes at once: the only module that may combine them.

Every function returns plain values that can be printed as a table or as JSON.
"""
