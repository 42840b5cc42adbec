"""What runs inside a sandbox: scripts that need nothing but the standard library, and are all it sees of this project.

They start with every program, twice, so they import little: ``typing`` alone takes longer than all of the rest.
"""
