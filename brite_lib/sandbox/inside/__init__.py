"""What runs inside a sandbox: scripts that need nothing but the standard library, and are all it sees of this project."""
